//! Answers: the right to give one, the queue of those given, and their way to the client.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use common::handshake::context::ReplyStyle;
use common::proto::{ChunkFlags, ChunkType, WireError};
use common::reply::{
    ChunkHeader, Extent, SimpleReply, put_error, put_error_offset, put_extents, put_extents_extended,
};

use super::reply::{Data, Head, Hold, Reply, gather};
use super::stream::Stream;
use crate::buf::{Grant, IoBuf};
use crate::device::Loan;

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
    /// Reads what the first reply was lent and cannot be sent as it is.
    reading: RefCell<Option<Reading>>,
}

type Reading = Pin<Box<dyn Future<Output = io::Result<IoBuf>>>>;

/// What goes into the answer of a request that succeeded.
pub(super) enum Body {
    /// That it did.
    Nothing,
    /// What a READ read in one piece, and from where.
    Data(u64, Data),
    /// What a READ read in chunks, without gaps; none if it was to read nothing.
    Parts(Vec<Part>),
    /// What each selected context says, by its id.
    Extents(Vec<(u32, Vec<Extent>)>),
}

/// A part of what was read.
pub(super) enum Part {
    /// Its place and its bytes.
    Data(u64, Data),
    /// Its place and how many zeroes there are.
    Hole(u64, u32),
}

/// The right to answer one request. It cannot be forgotten: dropped unused, it answers EIO.
pub(super) struct Ticket {
    cookie: u64,
    style: ReplyStyle,
    offset: u64,
    replies: Rc<Replies>,
    hold: Option<Hold>,
}

impl Ticket {
    /// Answers: success.
    pub(super) fn succeed(mut self, body: Body) {
        match body {
            Body::Data(_, data) if self.style == ReplyStyle::Simple => self.simple(WireError::OK, data),
            Body::Data(at, data) => self.data(ChunkFlags::DONE, at, data),
            // A READ must have chunks where they are agreed on, even one of nothing; other commands
            // "MAY use either", and extended headers leave no choice.
            Body::Parts(parts) if parts.is_empty() && self.style == ReplyStyle::Simple => {
                self.simple(WireError::OK, Data::None);
            }
            Body::Parts(parts) if parts.is_empty() => {
                self.chunk(ChunkFlags::DONE, ChunkType::NONE, &[], Data::None);
            }
            Body::Parts(parts) => self.parts(parts),
            Body::Extents(extents) => self.extents(&extents),
            Body::Nothing if self.style != ReplyStyle::Extended => self.simple(WireError::OK, Data::None),
            Body::Nothing => self.chunk(ChunkFlags::DONE, ChunkType::NONE, &[], Data::None),
        }
    }

    /// Answers: failure, with a text for people and the byte where it was met, where there is room
    /// for them.
    pub(super) fn fail(mut self, error: WireError, text: &str, at: Option<u64>) {
        self.failure(error, text, at);
    }

    fn failure(&mut self, error: WireError, text: &str, at: Option<u64>) {
        if self.style == ReplyStyle::Simple {
            return self.simple(error, Data::None);
        }
        let mut payload = Vec::new();
        let kind = match at {
            None => {
                put_error(&mut payload, error, text);
                ChunkType::ERROR
            }
            Some(at) => {
                put_error_offset(&mut payload, error, text, at);
                ChunkType::ERROR_OFFSET
            }
        };
        self.chunk(ChunkFlags::DONE, kind, &payload, Data::None);
    }

    fn simple(&mut self, error: WireError, data: Data) {
        let head = Head::of(&SimpleReply { error, cookie: self.cookie }.encode(), &[]);
        self.answer(ChunkFlags::DONE, head, data);
    }

    fn data(&mut self, flags: ChunkFlags, at: u64, data: Data) {
        self.chunk(flags, ChunkType::OFFSET_DATA, &at.to_be_bytes(), data);
    }

    fn parts(&mut self, parts: Vec<Part>) {
        let count = parts.len();
        for (number, part) in (1..).zip(parts) {
            let flags = if number == count { ChunkFlags::DONE } else { ChunkFlags::NONE };
            match part {
                Part::Data(at, data) => self.data(flags, at, data),
                Part::Hole(at, len) => {
                    let payload = [&at.to_be_bytes()[..], &len.to_be_bytes()].concat();
                    self.chunk(flags, ChunkType::OFFSET_HOLE, &payload, Data::None);
                }
            }
        }
    }

    /// A chunk per context; there is at least one.
    fn extents(&mut self, contexts: &[(u32, Vec<Extent>)]) {
        for (number, (id, extents)) in (1..).zip(contexts) {
            let flags = if number == contexts.len() { ChunkFlags::DONE } else { ChunkFlags::NONE };
            let mut payload = Vec::new();
            if self.style == ReplyStyle::Extended {
                put_extents_extended(&mut payload, *id, extents);
                self.chunk(flags, ChunkType::BLOCK_STATUS_EXT, &payload, Data::None);
            } else {
                put_extents(&mut payload, *id, extents);
                self.chunk(flags, ChunkType::BLOCK_STATUS, &payload, Data::None);
            }
        }
    }

    fn chunk(&mut self, flags: ChunkFlags, kind: ChunkType, payload: &[u8], data: Data) {
        let length = payload.len() + data.len();
        let length = u32::try_from(length).expect("a payload is bounded");
        let header = ChunkHeader { flags, kind, cookie: self.cookie, length };
        let head = match self.style {
            ReplyStyle::Extended => Head::of(&header.encode_extended(self.offset), payload),
            _ => Head::of(&header.encode(), payload),
        };
        self.answer(flags, head, data);
    }

    fn answer(&mut self, flags: ChunkFlags, head: Head, data: Data) {
        let hold = if flags == ChunkFlags::DONE { self.hold.take() } else { None };
        self.replies.push(Reply { head, data, hold });
    }
}

/// Has a file read in the ordinary way from now on, unless it was the client that has gone.
fn blame(loan: &Loan, error: &io::Error) {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    if !matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut) {
        tracing::warn!(%error, "a file cannot be sent as it is: it is read from now on");
        loan.failed.store(true, Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.hold.is_some() {
            self.failure(WireError::EIO, "a bug in the server", None);
        }
    }
}

impl Replies {
    /// The right to answer `cookie`, which holds its share of the limits from now on.
    pub(super) fn ticket(
        self: &Rc<Replies>,
        cookie: u64,
        style: ReplyStyle,
        offset: u64,
        grant: Grant,
    ) -> Ticket {
        self.outstanding.set(self.outstanding.get() + 1);
        self.bytes.set(self.bytes.get() + grant.bytes());
        Ticket { cookie, style, offset, replies: self.clone(), hold: Some(Hold { grant }) }
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
        *self.reading.borrow_mut() = None;
        let dropped = std::mem::take(&mut *self.queue.borrow_mut());
        dropped.iter().for_each(|reply| self.release(reply));
        self.queued_bytes.set(0);
    }

    /// Sends some of what waits; pending when nothing waits or the client does not read.
    pub(super) fn poll_send<S: Stream>(&self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<()>> {
        if self.reading.borrow().is_some() {
            ready!(self.poll_read_loan(cx))?;
        }
        let queue = self.queue.borrow();
        if queue.is_empty() {
            // An encrypted stream may hold the end of the last reply back.
            ready!(Pin::new(stream).poll_flush(cx))?;
            return Poll::Pending;
        }
        let sent = match &queue[0] {
            Reply { head, data: Data::Lent(loan), .. } if self.sent.get() >= head.bytes().len() => {
                match ready!(stream.poll_lend(cx, loan, self.sent.get() - head.bytes().len())) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        *self.reading.borrow_mut() = Some((loan.reader)(loan.at, loan.len));
                        drop(queue);
                        ready!(self.poll_read_loan(cx))?;
                        return Poll::Ready(Ok(()));
                    }
                    sent => sent.inspect_err(|error| blame(loan, error))?,
                }
            }
            _ => {
                let mut slices = gather(&queue);
                let mut unsent = &mut slices[..];
                IoSlice::advance_slices(&mut unsent, self.sent.get());
                ready!(Pin::new(stream).poll_write_vectored(cx, unsent))?
            }
        };
        drop(queue);
        tracing::trace!(bytes = sent, "sent");
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.forget(sent);
        Poll::Ready(Ok(()))
    }

    /// Has what the first reply was lent in our memory instead.
    fn poll_read_loan(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut reading = self.reading.borrow_mut();
        let Some(under_way) = &mut *reading else { return Poll::Ready(Ok(())) };
        let read = ready!(under_way.as_mut().poll(cx));
        *reading = None;
        if let Some(first) = self.queue.borrow_mut().front_mut() {
            first.data = Data::Held(read?);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes `sent` more bytes off the front of the queue.
    fn forget(&self, sent: usize) {
        let mut sent = self.sent.get() + sent;
        let mut queue = self.queue.borrow_mut();
        while let Some(reply) = queue.pop_front_if(|reply| reply.len() <= sent) {
            sent -= reply.len();
            self.queued_bytes.set(self.queued_bytes.get() - reply.held());
            self.release(&reply);
        }
        self.sent.set(sent);
    }

    fn push(&self, reply: Reply) {
        if self.discarding.get() {
            self.release(&reply);
        } else {
            self.queued_bytes.set(self.queued_bytes.get() + reply.held());
            self.queue.borrow_mut().push_back(reply);
        }
    }

    fn release(&self, reply: &Reply) {
        if reply.hold.is_some() {
            self.outstanding.set(self.outstanding.get() - 1);
            self.bytes.set(self.bytes.get() - reply.held());
        }
    }
}
