//! Answers: the right to give one, the queue of those given, and their way to the client.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use common::proto::{SIMPLE_REPLY_HEADER_LEN, WireError};
use common::reply::SimpleReply;
use futures::io::AsyncWrite;

use crate::buf::{Grant, IoBuf};

/// Replies gathered into one `sendmsg`; each is one or two slices and the kernel takes 1024.
const GATHER_MAX: usize = 256;

/// The replies of one connection that are ready and not yet sent.
#[derive(Default)]
pub(super) struct Replies {
    queue: RefCell<VecDeque<Reply>>,
    /// Bytes of the first reply that are already sent.
    sent: Cell<usize>,
    /// Requests that were received and whose reply is not yet sent.
    outstanding: Cell<usize>,
    /// Bytes of payload those requests hold.
    bytes: Cell<usize>,
    /// Bytes of payload the replies in the queue hold.
    queued_bytes: Cell<usize>,
    /// Nobody is there to read them.
    discarding: Cell<bool>,
}

struct Reply {
    header: [u8; SIMPLE_REPLY_HEADER_LEN],
    data: Option<IoBuf>,
    hold: Hold,
}

/// A request's share of the connection's limits, given back when its reply is sent.
struct Hold {
    grant: Grant,
}

/// The right to answer one request. It cannot be forgotten: dropped unused, it answers EIO.
pub(super) struct Ticket {
    cookie: u64,
    replies: Rc<Replies>,
    hold: Option<Hold>,
}

impl Ticket {
    /// Answers: success, with data if it was a READ.
    pub(super) fn succeed(mut self, data: Option<IoBuf>) {
        self.answer(WireError::OK, data);
    }

    /// Answers: failure.
    pub(super) fn fail(mut self, error: WireError) {
        self.answer(error, None);
    }

    fn answer(&mut self, error: WireError, data: Option<IoBuf>) {
        let Some(hold) = self.hold.take() else { return };
        let header = SimpleReply { error, cookie: self.cookie }.encode();
        self.replies.push(Reply { header, data, hold });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer(WireError::EIO, None);
    }
}

impl Replies {
    /// The right to answer `cookie`, which holds its share of the limits from now on.
    pub(super) fn ticket(self: &Rc<Replies>, cookie: u64, grant: Grant) -> Ticket {
        self.outstanding.set(self.outstanding.get() + 1);
        self.bytes.set(self.bytes.get() + grant.bytes());
        Ticket { cookie, replies: self.clone(), hold: Some(Hold { grant }) }
    }

    /// Requests received whose reply is not yet sent.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// Bytes of payload held by those.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Bytes of payload held by replies that wait to be sent.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// Whether no reply waits to be sent.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Drops the replies that wait and all that come: nobody can read them.
    pub(super) fn discard(&self) {
        self.discarding.set(true);
        let dropped = std::mem::take(&mut *self.queue.borrow_mut());
        dropped.into_iter().for_each(|reply| self.release(&reply.hold));
        self.queued_bytes.set(0);
    }

    /// Sends some of what waits; pending when nothing waits or the client does not read.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        let queue = self.queue.borrow();
        if queue.is_empty() {
            return Poll::Pending;
        }
        let mut slices = Vec::with_capacity(2 * queue.len().min(GATHER_MAX));
        for reply in queue.iter().take(GATHER_MAX) {
            slices.push(IoSlice::new(&reply.header));
            slices.extend(reply.data.as_deref().map(IoSlice::new));
        }
        let mut unsent = &mut slices[..];
        IoSlice::advance_slices(&mut unsent, self.sent.get());
        let sent = ready!(Pin::new(stream).poll_write_vectored(cx, unsent))?;
        drop(queue);
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.forget(sent);
        Poll::Ready(Ok(()))
    }

    /// Takes `sent` more bytes off the front of the queue.
    fn forget(&self, sent: usize) {
        let mut sent = self.sent.get() + sent;
        let mut queue = self.queue.borrow_mut();
        while let Some(reply) = queue.pop_front_if(|reply| reply.len() <= sent) {
            sent -= reply.len();
            self.queued_bytes.set(self.queued_bytes.get() - reply.hold.grant.bytes());
            self.release(&reply.hold);
        }
        self.sent.set(sent);
    }

    fn push(&self, reply: Reply) {
        if self.discarding.get() {
            self.release(&reply.hold);
        } else {
            self.queued_bytes.set(self.queued_bytes.get() + reply.hold.grant.bytes());
            self.queue.borrow_mut().push_back(reply);
        }
    }

    fn release(&self, hold: &Hold) {
        self.outstanding.set(self.outstanding.get() - 1);
        self.bytes.set(self.bytes.get() - hold.grant.bytes());
    }
}

impl Reply {
    fn len(&self) -> usize {
        self.header.len() + self.data.as_ref().map_or(0, |data| data.len())
    }
}
