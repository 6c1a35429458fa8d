//! Workers: threads with a runtime each, on which connections live from greeting to goodbye.

mod company;

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use common::handshake::context::Agreed;
use common::handshake::server::{Encryption, Server};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{Shared as SharedFuture, select};
use futures::stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::LocalSet;
use tokio::time::{Instant, interval, timeout, timeout_at};
use tracing::Instrument;

use crate::device::set_give_way;
use crate::durability::Clock;
use crate::engine::drive;
use crate::engine::seat::Occupied;
use crate::engine::{Ring, Seat};
use crate::export::{Export, Origin, Peer, Registry, Secrecy, Visible};
use crate::session::{self, End, Memory, Negotiated, Progress, Stop};
use crate::tls::{self, Upgrader};
use crate::transport::{Adapted, Direct, Plain, Socket, Stream};
use company::Company;

/// How long a client may take to send the rest of a request or to read a reply whose memory others wait
/// for: a rate of 1 MiB/s for the longest.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How often connections are looked at for that.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How long a closed connection's late requests are read and thrown away: closing a socket with
/// unread bytes would reset it, and the client would lose the replies it has not read yet.
const LINGER: Duration = Duration::from_secs(1);

/// What all workers share.
pub struct Shared {
    /// What is served.
    pub exports: Registry,
    /// Payload buffers and their limit.
    pub memory: Memory,
    /// How connections are encrypted, and whether they must be.
    pub tls: RwLock<Option<(Upgrader, Encryption)>>,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long a worker looks for the next request of its only client before it sleeps.
    pub busy_poll: Duration,
    /// How long clients may take to fetch their last replies.
    pub shutdown_timeout: Duration,
    /// Resolves when the server stops.
    pub stop: SharedFuture<oneshot::Receiver<()>>,
}

/// What is given to a worker.
pub enum Task {
    /// A connection, unless it was taken back meanwhile.
    Serve(Arc<Offer>),
    /// What an export does on its own account, until it is retired and closed.
    Keep(Arc<Export>),
}

/// A connection for whoever takes it first.
pub struct Offer(Mutex<Option<Connection>>);

/// A connection, with its share of the connection limit and its place at a worker.
pub struct Connection {
    /// It.
    pub socket: Socket,
    /// One of `--max-connections`.
    pub permit: OwnedSemaphorePermit,
    /// Where it is counted.
    pub place: Occupied,
}

impl Offer {
    /// Offers a connection.
    #[must_use]
    pub fn new(connection: Connection) -> Arc<Offer> {
        Arc::new(Offer(Mutex::new(Some(connection))))
    }

    /// Takes it, if it is still there.
    #[must_use]
    pub fn take(&self) -> Option<Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Starts a worker with a ring of its own, if there is one; it ends when the sender is dropped and its
/// connections have ended.
pub fn start(
    name: &str,
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    ring: Option<Ring>,
) -> anyhow::Result<mpsc::UnboundedSender<Task>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a worker's runtime")?;
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || LocalSet::new().block_on(&runtime, work(shared, receiver, seat, ring)))
        .context("cannot start a worker thread")?;
    Ok(sender)
}

/// The runtime's clock.
struct RuntimeClock;

impl Clock for RuntimeClock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Runs what an export does on its own account. Once it is retired and its connections are gone, it
/// is closed.
async fn keep(export: Arc<Export>, shared: Arc<Shared>) {
    let end = async {
        export.retired().await;
        if timeout(shared.shutdown_timeout, export.empty()).await.is_err() {
            tracing::warn!(
                "clients have not fetched their last replies in time (--shutdown-timeout): closing"
            );
            export.give_up();
            // What they asked of a disk may still be under way, so the export lives for as long as that takes.
            export.empty().await;
        }
        if let Err(error) = export.close().await {
            tracing::error!(%error, "not everything is durable");
        }
    };
    // Closing needs the background, so both go on until the end.
    let background = export.device().background(Rc::new(RuntimeClock));
    select(pin!(background.instrument(export.span())), pin!(end.instrument(export.span()))).await;
    shared.exports.let_go(&export);
    // Told once it is let go of.
    let (name, counters) = (export.name().to_owned(), export.counters().clone());
    drop(export);
    counters.log(&name, "removed");
}

async fn work(
    shared: Arc<Shared>,
    mut tasks: mpsc::UnboundedReceiver<Task>,
    seat: Arc<Seat>,
    ring: Option<Ring>,
) {
    seat.install();
    set_give_way(|| Box::pin(tokio::task::yield_now()));
    let company = Company::new(seat);
    if let Some(ring) = ring.map(Rc::new) {
        ring.install();
        tokio::task::spawn_local(async {
            let Err(error) = drive::drive(ring).await;
            // What it was given would never be answered.
            tracing::error!(%error, "the ring is broken");
            std::process::abort();
        });
    }
    while let Some(task) = tasks.recv().await {
        let shared = shared.clone();
        let offer = match task {
            Task::Serve(offer) => offer,
            Task::Keep(export) => {
                tokio::task::spawn_local(keep(export, shared));
                continue;
            }
        };
        let Some(Connection { socket, permit, place }) = offer.take() else { continue };
        let span = tracing::info_span!("client", address = %socket, export = tracing::field::Empty);
        let company = company.clone();
        let connection = async move {
            serve(socket, &shared, &company).await;
            drop((permit, place));
        };
        tokio::task::spawn_local(connection.instrument(span));
    }
}

async fn serve(socket: Socket, shared: &Shared, company: &Rc<Company>) {
    let origin = match &socket {
        Socket::Tcp(_, peer) => Origin::Address(peer.ip()),
        Socket::Unix(_) => Origin::Host,
        Socket::Vsock(_, peer) => Origin::Machine(peer.cid()),
    };
    let peer = Peer { origin, names: Vec::new(), secrecy: Secrecy::Clear };
    let end = match socket.adopt() {
        Ok(Stream::Tcp(stream)) => converse(stream, peer, shared, company).await,
        Ok(Stream::Unix(stream)) => converse(stream, peer, shared, company).await,
        Ok(Stream::Vsock(stream)) => converse(stream, peer, shared, company).await,
        Err(error) => End::Broken(error),
    };
    match end {
        End::Violation(_) | End::Broken(_) => tracing::warn!("{end}"),
        End::Disconnected | End::Aborted | End::Stopped => tracing::debug!("{end}"),
    }
}

/// One connection: negotiate within the time limit, in the clear and then perhaps encrypted,
/// transmit under watch, close.
async fn converse<S: Plain>(stream: S, peer: Peer, shared: &Shared, company: &Rc<Company>) -> End {
    let deadline = Instant::now() + shared.handshake_timeout;
    let tls = shared.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
    let policy = tls.as_ref().map_or(Encryption::Unavailable, |(_, policy)| *policy);
    let exports = Visible { registry: &shared.exports, peer: &peer };
    let mut clear = Adapted(stream);
    let negotiation = session::negotiate(&mut clear, &exports, policy);
    let server = match in_time(negotiation, deadline, shared).await {
        Ok(Negotiated::Export(export, agreed)) => {
            let mut direct = Direct::new(clear, company.seat.clone(), shared.busy_poll);
            let end = transmit(&mut direct, export, agreed, &peer, shared, company).await;
            close(direct.into_inner(), &end).await;
            return end;
        }
        Ok(Negotiated::StartTls(server)) => server,
        Err(end) => return end,
    };
    let (upgrader, _) = tls.expect("STARTTLS is agreed on only where there is TLS");
    match in_time(secure(clear.0, server, &upgrader, peer, shared), deadline, shared).await {
        Ok((mut encrypted, peer, export, agreed)) => {
            let end = transmit(&mut encrypted, export, agreed, &peer, shared, company).await;
            close(encrypted.0, &end).await;
            end
        }
        Err(end) => end,
    }
}

/// Upgrades a stream and goes on with the negotiation.
async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    server: Server,
    upgrader: &Upgrader,
    peer: Peer,
    shared: &Shared,
) -> Result<(Adapted<impl AsyncRead + AsyncWrite + Unpin>, Peer, Arc<Export>, Agreed), End> {
    let mut encrypted = Adapted(upgrader.upgrade(stream).await?);
    let peer = Peer { names: tls::names(&encrypted.0), secrecy: Secrecy::Encrypted, ..peer };
    let exports = Visible { registry: &shared.exports, peer: &peer };
    match session::resume(&mut encrypted, &exports, server).await {
        Ok(Negotiated::Export(export, agreed)) => Ok((encrypted, peer, export, agreed)),
        Ok(Negotiated::StartTls(_)) => unreachable!("an encrypted stream is not upgraded again"),
        Err(end) => {
            // "the party initiating the transaction SHOULD shutdown TLS first"
            close(encrypted.0, &end).await;
            Err(end)
        }
    }
}

/// A part of the negotiation, until it took too long or the server stops.
async fn in_time<T>(
    part: impl Future<Output = Result<T, End>>,
    deadline: Instant,
    shared: &Shared,
) -> Result<T, End> {
    tokio::select! {
        done = timeout_at(deadline, part) => done.unwrap_or_else(|_elapsed| {
            tracing::warn!("the client did not choose an export in time");
            Err(End::Stopped)
        }),
        _ = shared.stop.clone() => Err(End::Stopped),
    }
}

/// The most general stream, an encrypted one.
impl<S: AsyncRead + AsyncWrite + Unpin> session::Stream for Adapted<S> {}

impl<S: Plain> session::Stream for Direct<S> {
    fn expect(&mut self, soon: bool) {
        Direct::expect(self, soon);
    }
}

/// The rest of a connection after its negotiation, but for its goodbye.
async fn transmit<S: session::Stream>(
    stream: &mut S,
    export: Arc<Export>,
    agreed: Agreed,
    peer: &Peer,
    shared: &Shared,
    company: &Rc<Company>,
) -> End {
    // Not a span of its own, which would be entered and left for each request.
    tracing::Span::current().record("export", export.name());
    let Some(mut visit) = export.visit(peer) else {
        tracing::warn!(
            "the export takes no more connections (max-connections), or not of this client: closing"
        );
        return End::Stopped;
    };
    let contexts = agreed.contexts.len();
    tracing::debug!(replies = ?agreed.style, contexts, "transmission begins");
    let member = company.join(&export);

    let progress = Rc::new(Progress::default());
    let (give_up, gave_up) = oneshot::channel();
    // A watcher that is gone never gives up.
    let gave_up = gave_up.then(|given| async move {
        if given.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let gently = select(shared.stop.clone(), visit.end()).map(|_| Stop::Gently);
    let at_once = select(visit.cut(), gave_up.boxed_local()).map(|_| Stop::AtOnce);
    let stop = stream::select(stream::once(gently), stream::once(at_once));
    let memory = shared.memory.clone();
    let transmission = session::transmit(stream, export, agreed, memory, stop, progress.clone());
    let end = tokio::select! {
        end = transmission => end,
        never = watch(&progress, give_up) => match never {},
    };
    // Nothing of the export is held while the last bytes of its client are waited for.
    drop((member, visit));
    end
}

/// Gives up on a client that holds memory which others wait for and does not finish with it.
async fn watch(progress: &Progress, give_up: oneshot::Sender<()>) -> std::convert::Infallible {
    let mut every = interval(WATCH_EVERY);
    let (mut receiving, mut sending) = (Stall::default(), Stall::default());
    let mut moved = progress.moved.get();
    loop {
        let now = every.tick().await;
        // Seen by the transmission when it is polled next: now or at the next tick.
        progress.at_rest.set(progress.moved.get() == moved);
        moved = progress.moved.get();
        let contended = progress.account.get().is_some_and(|account| account.is_contended());
        let stalled = receiving.is_over(now, contended, progress.receiving.get(), progress.received.get())
            | sending.is_over(now, contended, progress.sending.get(), progress.sent.get());
        if stalled {
            tracing::warn!("the client holds memory that others need and is too slow with it: closing");
            let _session_has_ended = give_up.send(());
            return std::future::pending().await;
        }
    }
}

/// Since when a client has held memory that others wait for without finishing anything.
#[derive(Default)]
struct Stall {
    since: Option<Instant>,
    finished: u64,
}

impl Stall {
    /// Whether it has done so for too long. `held` bytes are held, and so much was `finished` so far: a byte
    /// now and then is no progress.
    fn is_over(&mut self, now: Instant, contended: bool, held: usize, finished: u64) -> bool {
        if !contended || held == 0 || finished != self.finished {
            (self.since, self.finished) = (None, finished);
            return false;
        }
        now - *self.since.get_or_insert(now) >= STALL_MAX
    }
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, end: &End) {
    // What is left of an encrypted stream may not fit into the socket of a client that does not read.
    let _client_may_be_gone = timeout(LINGER, stream.shutdown()).await;
    if let End::Stopped | End::Violation(_) = end {
        let mut late = vec![0; 4096];
        let drain = async { while matches!(stream.read(&mut late).await, Ok(1..)) {} };
        let _elapsed = timeout(LINGER, drain).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let (mut stall, start) = (Stall::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!stall.is_over(start, true, 1, 7));
        assert!(!stall.is_over(after(29), true, 1, 7));
        assert!(!stall.is_over(after(30), true, 1, 8), "it has finished something");
        assert!(!stall.is_over(after(31), true, 1, 8));
        assert!(!stall.is_over(after(50), false, 1, 8), "nobody waits");
        assert!(!stall.is_over(after(60), true, 1, 8));
        assert!(stall.is_over(after(90), true, 1, 8));
    }
}
