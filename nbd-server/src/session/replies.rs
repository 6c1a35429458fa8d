//! Answers: the right to give one, the queue of those given, and their way to the client.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use common::handshake::context::ReplyStyle;
use common::proto::{CHUNK_HEADER_LEN, ChunkFlags, ChunkType, SIMPLE_REPLY_HEADER_LEN, WireError};
use common::reply::{ChunkHeader, Extent, SimpleReply, put_error, put_extents};
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
    head: Head,
    data: Option<IoBuf>,
    hold: Hold,
}

/// What comes before the data of a READ, or instead of it.
enum Head {
    /// A simple reply's header.
    Simple([u8; SIMPLE_REPLY_HEADER_LEN]),
    /// The header of a chunk of data, and its offset.
    Data([u8; DATA_HEAD_LEN]),
    /// Any other chunks.
    Chunks(Vec<u8>),
}

/// What goes into the answer of a request that succeeded.
pub(super) enum Body {
    /// That it did.
    Nothing,
    /// What a READ read, and from where.
    Data(u64, IoBuf),
    /// What each selected context says, by its id.
    Extents(Vec<(u32, Vec<Extent>)>),
}

/// Bytes of a chunk's header and an offset.
const DATA_HEAD_LEN: usize = CHUNK_HEADER_LEN + 8;

/// A request's share of the connection's limits, given back when its reply is sent.
struct Hold {
    grant: Grant,
}

/// The right to answer one request. It cannot be forgotten: dropped unused, it answers EIO.
pub(super) struct Ticket {
    cookie: u64,
    style: ReplyStyle,
    replies: Rc<Replies>,
    hold: Option<Hold>,
}

impl Ticket {
    /// Answers: success.
    pub(super) fn succeed(mut self, body: Body) {
        let (head, data) = match (self.style, body) {
            (ReplyStyle::Simple, Body::Data(_, data)) => (self.simple(WireError::OK), Some(data)),
            (ReplyStyle::Simple, _) => (self.simple(WireError::OK), None),
            (ReplyStyle::Structured, Body::Data(at, data)) => (self.data(at, data.len()), Some(data)),
            (ReplyStyle::Structured, Body::Nothing) => (self.chunk(ChunkType::NONE, &[]), None),
            (ReplyStyle::Structured, Body::Extents(extents)) => (self.extents(&extents), None),
        };
        self.answer(head, data);
    }

    /// Answers: failure, with a text for people where there is room for it.
    pub(super) fn fail(mut self, error: WireError, text: &str) {
        let head = self.failure(error, text);
        self.answer(head, None);
    }

    fn failure(&self, error: WireError, text: &str) -> Head {
        if self.style == ReplyStyle::Simple {
            return self.simple(error);
        }
        let mut payload = Vec::new();
        put_error(&mut payload, error, text);
        self.chunk(ChunkType::ERROR, &payload)
    }

    fn simple(&self, error: WireError) -> Head {
        Head::Simple(SimpleReply { error, cookie: self.cookie }.encode())
    }

    fn data(&self, at: u64, len: usize) -> Head {
        let mut head = [0; DATA_HEAD_LEN];
        let header = self.header(ChunkFlags::DONE, ChunkType::OFFSET_DATA, 8 + len);
        head[..CHUNK_HEADER_LEN].copy_from_slice(&header.encode());
        head[CHUNK_HEADER_LEN..].copy_from_slice(&at.to_be_bytes());
        Head::Data(head)
    }

    /// The only chunk of an answer.
    fn chunk(&self, kind: ChunkType, payload: &[u8]) -> Head {
        let header = self.header(ChunkFlags::DONE, kind, payload.len());
        Head::Chunks([&header.encode()[..], payload].concat())
    }

    /// A chunk per context; there is at least one.
    fn extents(&self, contexts: &[(u32, Vec<Extent>)]) -> Head {
        let mut out = Vec::new();
        for (number, (id, extents)) in contexts.iter().enumerate() {
            let mut payload = Vec::new();
            put_extents(&mut payload, *id, extents);
            let last = number + 1 == contexts.len();
            let flags = if last { ChunkFlags::DONE } else { ChunkFlags::NONE };
            out.extend(self.header(flags, ChunkType::BLOCK_STATUS, payload.len()).encode());
            out.extend(payload);
        }
        Head::Chunks(out)
    }

    fn header(&self, flags: ChunkFlags, kind: ChunkType, length: usize) -> ChunkHeader {
        let length = u32::try_from(length).expect("a payload is bounded");
        ChunkHeader { flags, kind, cookie: self.cookie, length }
    }

    fn answer(&mut self, head: Head, data: Option<IoBuf>) {
        let Some(hold) = self.hold.take() else { return };
        self.replies.push(Reply { head, data, hold });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.hold.is_some() {
            let head = self.failure(WireError::EIO, "a bug in the server");
            self.answer(head, None);
        }
    }
}

impl Replies {
    /// The right to answer `cookie`, which holds its share of the limits from now on.
    pub(super) fn ticket(self: &Rc<Replies>, cookie: u64, style: ReplyStyle, grant: Grant) -> Ticket {
        self.outstanding.set(self.outstanding.get() + 1);
        self.bytes.set(self.bytes.get() + grant.bytes());
        Ticket { cookie, style, replies: self.clone(), hold: Some(Hold { grant }) }
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
            slices.push(IoSlice::new(reply.head.bytes()));
            slices.extend(reply.data.as_deref().map(IoSlice::new));
        }
        let mut unsent = &mut slices[..];
        IoSlice::advance_slices(&mut unsent, self.sent.get());
        let sent = ready!(Pin::new(stream).poll_write_vectored(cx, unsent))?;
        drop(queue);
        tracing::trace!(bytes = sent, "sent");
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

impl Head {
    fn bytes(&self) -> &[u8] {
        match self {
            Head::Simple(bytes) => bytes,
            Head::Data(bytes) => bytes,
            Head::Chunks(bytes) => bytes,
        }
    }
}

impl Reply {
    fn len(&self) -> usize {
        self.head.bytes().len() + self.data.as_ref().map_or(0, |data| data.len())
    }
}
