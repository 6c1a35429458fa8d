//! Turns received bytes into requests.
//!
//! Many small requests come out of one `recv`, with their payloads, into a buffer that grows with
//! what the client sends at a time; the rest of a long payload is received straight into the
//! buffer that goes to the disk. Nothing is handed on before its last byte is here. All state is in
//! [`Receiver`], so that it can be polled, left and polled again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use common::Violation;
use common::command::{Command, Refusal, RequestHeader, Terms};
use common::handshake::context::ReplyStyle;
use common::proto::{EXTENDED_HEADER_LEN, REQUEST_HEADER_LEN, WireError};
use futures::io::AsyncRead;

use super::End;
use crate::buf::{Account, Grant, IoBuf, Place, Pool, size_for};
use crate::device::EXTENTS_MAX;

/// Bytes of the buffer at first, and at rest: room for a short WRITE.
const BUFFER_MIN: usize = 8 << 10;
/// Bytes it grows to, by doubling whenever a `recv` has filled it: 64 short WRITEs.
const BUFFER_MAX: usize = 256 << 10;
/// Missing bytes of a payload from which on they are received in place: to copy fewer costs less
/// than a system call of their own.
const IN_PLACE_MIN: usize = 32 << 10;

/// Memory that the answer to a BLOCK_STATUS may take, in the making and on its way.
const STATUS_BYTES: usize = 32 * EXTENTS_MAX;

/// A request that is here whole.
pub(super) struct Incoming {
    pub(super) cookie: u64,
    /// How it may be answered.
    pub(super) style: ReplyStyle,
    pub(super) offset: u64,
    pub(super) what: What,
    pub(super) grant: Grant,
}

/// What a request asks for.
pub(super) enum What {
    /// Run it; a WRITE has its payload.
    Run(Command, Option<IoBuf>),
    /// Answer with the error.
    Refuse(WireError),
}

/// The receiving half of a connection.
pub(super) struct Receiver {
    terms: Terms,
    pool: Arc<Pool>,
    /// Pays for payloads.
    account: Arc<Account>,
    state: State,
    /// The first byte of the request that is being received.
    offset: u64,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

enum State {
    Header,
    /// The header is here; its payload or its answer awaits memory.
    Memory {
        cookie: u64,
        command: Command,
        place: Place,
    },
    Payload {
        cookie: u64,
        command: Command,
        grant: Grant,
        data: IoBuf,
        filled: usize,
    },
    /// The header is here, the payload of a BLOCK_STATUS is not.
    Filter(RequestHeader),
    Skip {
        cookie: u64,
        error: WireError,
        left: u64,
    },
}

impl Receiver {
    pub(super) fn new(terms: Terms, pool: Arc<Pool>, account: Arc<Account>) -> Receiver {
        let buffer = vec![0; BUFFER_MIN].into_boxed_slice();
        Receiver { terms, pool, account, offset: 0, state: State::Header, buffer, start: 0, end: 0 }
    }

    /// Whether the next step is up to the memory budget, not to the client.
    pub(super) fn waits_for_memory(&self) -> bool {
        matches!(self.state, State::Memory { .. })
    }

    /// Bytes of payload held for a request that is not here whole.
    pub(super) fn bytes(&self) -> usize {
        match &self.state {
            State::Payload { data, .. } => data.len(),
            _ => 0,
        }
    }

    /// Makes the next request out of what was received; pending when more must be received first
    /// or when memory is short.
    pub(super) fn poll_decode(&mut self, cx: &Context<'_>) -> Poll<Result<Incoming, End>> {
        loop {
            match &mut self.state {
                State::Header => ready!(self.decode_header())?,
                State::Memory { cookie, command, place } => {
                    let (cookie, command) = (*cookie, *command);
                    let grant = ready!(place.poll(cx));
                    let Command::Write(span, _) = command else {
                        return self.deliver(cookie, What::Run(command, None), grant);
                    };
                    let data = self.pool.take(bytes(span.len));
                    self.state = State::Payload { cookie, command, grant, data, filled: 0 };
                }
                State::Payload { data, filled, .. } => {
                    let take = (data.len() - *filled).min(self.end - self.start);
                    data[*filled..*filled + take]
                        .copy_from_slice(&self.buffer[self.start..self.start + take]);
                    *filled += take;
                    self.start += take;
                    if *filled < data.len() {
                        return Poll::Pending;
                    }
                    let State::Payload { cookie, command, grant, data, .. } =
                        std::mem::replace(&mut self.state, State::Header)
                    else {
                        unreachable!("matched above")
                    };
                    return self.deliver(cookie, What::Run(command, Some(data)), grant);
                }
                State::Filter(header) => {
                    let header = *header;
                    let received = &self.buffer[self.start..self.end];
                    let Some(payload) = received.get(..bytes(header.length)) else { return Poll::Pending };
                    let filtered = header.filter(&self.terms, payload);
                    self.start += bytes(header.length);
                    self.state = State::admitted(header.cookie, filtered, 0, &self.account);
                }
                State::Skip { cookie, error, left } => {
                    let skip = (self.end - self.start).min(bytes(*left));
                    *left -= skip as u64;
                    self.start += skip;
                    if *left > 0 {
                        return Poll::Pending;
                    }
                    let (cookie, error) = (*cookie, *error);
                    let grant = ready!(self.account.ask(0).poll(cx));
                    return self.deliver(cookie, What::Refuse(error), grant);
                }
            }
        }
    }

    /// Receives once: into the payload where much of one is awaited, else into the buffer.
    pub(super) fn poll_receive<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<Result<(), End>> {
        if let State::Payload { data, filled, .. } = &mut self.state
            && data.len() - *filled >= IN_PLACE_MIN
        {
            let received = ready!(Pin::new(stream).poll_read(cx, &mut data[*filled..]))?;
            *filled += received;
            return Poll::Ready(if received == 0 { Err(cut_short()) } else { Ok(()) });
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let received = ready!(Pin::new(stream).poll_read(cx, &mut self.buffer[self.end..]))?;
        self.end += received;
        if self.end == self.buffer.len() && self.end < BUFFER_MAX {
            self.resize(2 * self.buffer.len());
        }
        if received > 0 {
            return Poll::Ready(Ok(()));
        }
        let between_requests = self.end == 0 && matches!(self.state, State::Header);
        Poll::Ready(Err(if between_requests { End::Disconnected } else { cut_short() }))
    }

    /// Gives memory back that a client at rest does not need.
    pub(super) fn rest(&mut self) {
        if self.start == self.end && self.buffer.len() > BUFFER_MIN {
            (self.start, self.end) = (0, 0);
            self.resize(BUFFER_MIN);
        }
    }

    fn resize(&mut self, len: usize) {
        let mut buffer = std::mem::take(&mut self.buffer).into_vec();
        buffer.resize(len, 0);
        self.buffer = buffer.into_boxed_slice();
    }

    fn decode_header(&mut self) -> Poll<Result<(), End>> {
        let received = &self.buffer[self.start..self.end];
        let header = if self.terms.style == ReplyStyle::Extended {
            let Some(bytes) = received.first_chunk::<EXTENDED_HEADER_LEN>() else { return Poll::Pending };
            self.start += EXTENDED_HEADER_LEN;
            RequestHeader::decode_extended(bytes)?
        } else {
            let Some(bytes) = received.first_chunk::<REQUEST_HEADER_LEN>() else { return Poll::Pending };
            self.start += REQUEST_HEADER_LEN;
            RequestHeader::decode(bytes)?
        };
        tracing::trace!(?header, "request");
        let cookie = header.cookie;
        self.offset = header.offset;
        self.state = match header.admit(&self.terms) {
            Ok(Command::Disconnect) => return Poll::Ready(Err(End::Disconnected)),
            Ok(Command::Filter) => State::Filter(header),
            Ok(command) => State::admitted(cookie, Ok(command), 0, &self.account),
            Err(Refusal { skip, .. }) if skip > u32::MAX.into() => {
                return Poll::Ready(Err(Violation::TooLong(skip).into()));
            }
            Err(Refusal { error, skip }) => {
                tracing::debug!(?header, ?error, "refused");
                State::admitted(cookie, Err(error), skip, &self.account)
            }
        };
        Poll::Ready(Ok(()))
    }

    fn deliver(&mut self, cookie: u64, what: What, grant: Grant) -> Poll<Result<Incoming, End>> {
        self.state = State::Header;
        Poll::Ready(Ok(Incoming { cookie, style: self.terms.style, offset: self.offset, what, grant }))
    }
}

impl State {
    /// What is next once it is known what a request is: memory for it, or the rest of its payload.
    fn admitted(
        cookie: u64,
        command: Result<Command, WireError>,
        left: u64,
        account: &Arc<Account>,
    ) -> State {
        match command {
            Ok(command) => State::Memory { cookie, command, place: account.ask(payload(&command)) },
            Err(error) => State::Skip { cookie, error, left },
        }
    }
}

/// Bytes of memory a command needs: what it carries or what its answer carries.
fn payload(command: &Command) -> usize {
    match command {
        Command::Read(span, _) | Command::Write(span, _) if span.len > 0 => size_for(bytes(span.len)),
        Command::BlockStatus(..) => STATUS_BYTES,
        _ => 0,
    }
}

/// A length of this machine.
fn bytes(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn cut_short() -> End {
    End::Broken(std::io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use common::command::{ContextSet, Extents, Span};
    use common::reply::Extent;

    use super::*;

    #[test]
    fn the_answer_to_a_block_status_fits_in_what_is_asked_for_it() {
        let command = Command::BlockStatus(Span { at: 0, len: 1 }, Extents::Any, ContextSet::ALL);
        let (made, sent) = (size_of::<Extent>(), 8 + 8);
        assert!(payload(&command) >= EXTENTS_MAX * (made + sent));
        assert_eq!(payload(&Command::Flush), 0);
    }
}
