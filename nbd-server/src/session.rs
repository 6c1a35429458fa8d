//! One connection, from greeting to goodbye.
//!
//! [`negotiate`] agrees on an export; [`transmit`] then takes requests, runs many at once and
//! sends replies in whatever order they are ready. Follow one request: `receive` parses it,
//! `Connection::start` sets it going, `execute` runs it on the device, a `replies::Ticket`
//! answers it and `replies` sends the answer.
//!
//! Nothing here knows a runtime: a connection is one future over any byte stream, so that a
//! seeded executor can drive it too. A request that was received whole runs to completion even if
//! its client is gone; a request that was not has no effect at all.

mod execute;
mod negotiate;
mod read;
mod receive;
mod replies;
mod reply;
mod status;
mod stream;
mod tape;

use std::cell::{Cell, OnceCell};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use common::Violation;
use common::command::{Command, Span};
use common::handshake::context::Agreed;
use futures::FutureExt;
use futures::stream::{FusedStream, FuturesUnordered, StreamExt};

use crate::buf::{Account, Budget, Pool};
use crate::durability::{Client, Receipt};
use crate::export::Export;
use execute::Around;
use receive::{Incoming, Receiver, What};
use replies::Replies;

pub use negotiate::{Negotiated, negotiate, resume};
pub use stream::Stream;

/// Requests of one connection that are received and not yet answered. The kernel has 128 tags per
/// connection; twice that keeps a deeper client busy, and bounds the memory of small requests.
pub const REQUESTS_MAX: usize = 256;
/// Bytes of payload one connection may hold before it takes another request: two of the longest that were advertised.
pub const BYTES_MAX: usize = 64 << 20;

/// What all connections of a server share.
#[derive(Clone)]
pub struct Memory {
    /// Where payload buffers come from.
    pub pool: Arc<Pool>,
    /// What all connections together may hold.
    pub budget: Arc<Budget>,
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client said DISC, or closed between two requests.
    #[error("the client disconnected")]
    Disconnected,
    /// The client gave up during the negotiation.
    #[error("the client aborted the negotiation")]
    Aborted,
    /// The server is stopping, or has given up on the client.
    #[error("the server closed the connection")]
    Stopped,
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// Progress of a connection, for whoever watches over it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Grows whenever bytes move.
    pub moved: Cell<u64>,
    /// Bytes of payload that are held until the client has sent the rest of a request.
    pub receiving: Cell<usize>,
    /// Requests that were received whole.
    pub received: Cell<u64>,
    /// Bytes of payload that are held until the client has read its replies.
    pub sending: Cell<usize>,
    /// Replies that were sent whole.
    pub sent: Cell<u64>,
    /// Set by the one who watches when nothing has moved for a while.
    pub at_rest: Cell<bool>,
    /// What it holds memory on.
    pub account: OnceCell<Arc<Account>>,
}

/// Serves a negotiated connection until it ends; everything received whole is finished by then.
///
/// `stop` says when no more requests shall be taken, and may say later that what was received shall not be answered
/// either. The stream is left open, so that the caller can close it as its transport demands.
pub async fn transmit<S>(
    stream: &mut S,
    export: Arc<Export>,
    agreed: Agreed,
    memory: Memory,
    mut stop: impl FusedStream<Item = Stop> + Unpin,
    progress: Rc<Progress>,
) -> End
where
    S: Stream,
{
    let mut connection = Connection::new(stream, export, agreed, memory, progress);
    let end = poll_fn(|cx| connection.poll(cx, &mut stop)).await;
    connection.finish(end, &mut stop).await
}

/// Why no more requests shall be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Answer what was received, then close.
    Gently,
    /// The client is beyond hope: finish what was received, answer nothing.
    AtOnce,
}

/// A request that runs.
type InFlight = Pin<Box<dyn Future<Output = ()>>>;

/// One connection in transmission.
struct Connection<'s, S> {
    stream: &'s mut S,
    /// Its share in the order of the export's requests.
    client: Client,
    around: Rc<Around>,
    receiver: Receiver,
    in_flight: FuturesUnordered<InFlight>,
    replies: Rc<Replies>,
    progress: Rc<Progress>,
    /// Requests that came out of what was received last.
    fresh: usize,
}

impl<'s, S: Stream> Connection<'s, S> {
    fn new(
        stream: &'s mut S,
        export: Arc<Export>,
        agreed: Agreed,
        memory: Memory,
        progress: Rc<Progress>,
    ) -> Self {
        // Nobody else has its address while it lives.
        let account = memory.budget.account(Arc::as_ptr(&export).addr());
        progress.account.get_or_init(|| account.clone());
        let receiver = Receiver::new(export.terms(&agreed), memory.pool.clone(), account);
        let (in_flight, replies) = (FuturesUnordered::new(), Rc::new(Replies::default()));
        let (tap, client) = (export.tap(), export.device().connect());
        let around = Around { export, contexts: agreed.contexts, tap, pool: memory.pool };
        Connection {
            stream,
            client,
            around: Rc::new(around),
            receiver,
            in_flight,
            replies,
            progress,
            fresh: 0,
        }
    }

    /// Drives everything that is under way until no more requests will come.
    ///
    /// Requests are taken from what was already received before replies are sent, and replies
    /// are sent before more is received: one `recv` brings many requests and one `send` takes
    /// many replies away, and at depth one each goes at once.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stop: &mut (impl FusedStream<Item = Stop> + Unpin),
    ) -> Poll<End> {
        loop {
            self.poll_in_flight(cx);
            while let Poll::Ready(incoming) = self.poll_decode(cx) {
                match incoming {
                    Ok(incoming) => self.start(cx, incoming),
                    Err(end) => return Poll::Ready(end),
                }
            }
            match self.poll_send(cx) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(error)) => return Poll::Ready(End::Broken(error)),
                Poll::Pending => {}
            }
            if let Some(why) = poll_stop(cx, stop) {
                if why == Stop::AtOnce {
                    self.replies.discard();
                }
                return Poll::Ready(End::Stopped);
            }
            match self.poll_receive(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {
                    self.rest();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Lets requests run; each that ends has put its reply into `replies`.
    fn poll_in_flight(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(())) = self.in_flight.poll_next_unpin(cx) {}
    }

    /// The next request that is here whole and may run.
    fn poll_decode(&mut self, cx: &Context<'_>) -> Poll<Result<Incoming, End>> {
        if !self.has_room() {
            return Poll::Pending;
        }
        self.receiver.poll_decode(cx)
    }

    /// Sends some of the replies that are ready; pending when there are none.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.replies.outstanding();
        let sent = self.replies.poll_send(cx, self.stream);
        let replies = (before - self.replies.outstanding()) as u64;
        self.progress.sent.set(self.progress.sent.get() + replies);
        self.note(sent.is_ready());
        sent
    }

    /// Receives some bytes; pending also while there is no room for the request they belong to.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if !self.has_room() || self.receiver.waits_for_memory() {
            return Poll::Pending;
        }
        self.stream.expect(self.fresh == 1 && self.replies.outstanding() == 0);
        let received = self.receiver.poll_receive(cx, self.stream);
        if received.is_ready() {
            self.fresh = 0;
        }
        self.note(received.is_ready());
        received
    }

    /// Holds no more memory than it needs while its client is at rest.
    fn rest(&mut self) {
        if self.progress.at_rest.get() && self.replies.outstanding() == 0 {
            self.receiver.rest();
        }
    }

    /// Whether another request may be taken. Nothing needs to wake us when room is made: it is
    /// made by sending a reply, after which the loop comes round again.
    fn has_room(&self) -> bool {
        self.replies.outstanding() < REQUESTS_MAX && self.replies.bytes() < BYTES_MAX
    }

    fn note(&self, moved: bool) {
        if moved {
            self.progress.moved.set(self.progress.moved.get() + 1);
        }
        self.progress.sending.set(self.replies.queued_bytes());
        self.progress.receiving.set(self.receiver.bytes());
    }

    /// Sets a request going. Its first step is taken here and now, in the order of receipt; most
    /// need no other.
    fn start(&mut self, cx: &mut Context<'_>, incoming: Incoming) {
        self.fresh += 1;
        self.progress.received.set(self.progress.received.get() + 1);
        let ticket = self.replies.ticket(incoming.cookie, incoming.style, incoming.offset, incoming.grant);
        let (command, payload) = match incoming.what {
            What::Run(command, payload) => (command, payload),
            What::Refuse(error) => return execute::refuse(error, ticket, &self.around),
        };
        let (receipt, around) = (self.receipt(&command), self.around.clone());
        let request = execute::execute(incoming.cookie, command, payload, receipt, ticket, around);
        let request = AssertUnwindSafe(request);
        // Unwinding drops the ticket, which answers EIO: a bug below costs one request, and the
        // others of this connection go on.
        let mut request: InFlight = Box::pin(request.catch_unwind().map(|_panicked| ()));
        if request.as_mut().poll(cx).is_pending() {
            self.in_flight.push(request);
        }
    }

    /// The request's place in the order: that of its receipt.
    fn receipt(&self, command: &Command) -> Receipt {
        let device = self.around.export.device();
        match *command {
            Command::Write(Span { at, len }, _)
            | Command::Trim(Span { at, len }, _)
            | Command::WriteZeroes(Span { at, len }, ..) => device.receive_write(&self.client, at..at + len),
            Command::Flush => device.receive_flush(&self.client),
            _ => device.receive(&self.client),
        }
    }

    /// Finishes what was received and sends what can still be sent.
    async fn finish(mut self, end: End, stop: &mut (impl FusedStream<Item = Stop> + Unpin)) -> End {
        self.around.export.device().disconnect(&self.client);
        if let End::Broken(_) | End::Violation(_) = end {
            self.replies.discard();
        }
        poll_fn(|cx| self.poll_finish(cx, stop)).await;
        // Nothing a client left behind stays in the server alone. An error is told to those who are left.
        let _poisoned = self.around.export.write_back().await;
        end
    }

    fn poll_finish(
        &mut self,
        cx: &mut Context<'_>,
        stop: &mut (impl FusedStream<Item = Stop> + Unpin),
    ) -> Poll<()> {
        loop {
            self.poll_in_flight(cx);
            if poll_stop(cx, stop) == Some(Stop::AtOnce) {
                self.replies.discard();
            }
            match self.poll_send(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => self.replies.discard(),
                Poll::Pending if self.in_flight.is_empty() && self.replies.is_empty() => {
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The last that is said about stopping, if something is.
fn poll_stop(cx: &mut Context<'_>, stop: &mut (impl FusedStream<Item = Stop> + Unpin)) -> Option<Stop> {
    let mut said = None;
    while !stop.is_terminated()
        && let Poll::Ready(Some(why)) = stop.poll_next_unpin(cx)
    {
        said = Some(why);
    }
    said
}
