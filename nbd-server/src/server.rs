//! The server's life: listen, hand connections to workers, stop in good order.

mod crew;
mod reload;

use std::process::ExitCode;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use common::handshake::server::Encryption;
use common::uri::{Tls, Uri};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::join_all;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::admin::Admin;
use crate::buf::{Budget, Pool};
use crate::config::{Config, DEFAULT_ADDRESS, Globals, resolve};
use crate::confine::Confined;
use crate::export::Export;
use crate::listen::Listener;
use crate::session::Memory;
use crate::worker::{Shared, Task};
use crew::Crew;

pub use reload::Reloader;

/// Signals that come within so long after the first are the same wish.
const SAME_WISH: Duration = Duration::from_secs(1);
/// How long disks have at least to store what was acknowledged, once the last client was waited for.
const CLOSE_MIN: Duration = Duration::from_secs(5);

/// The sockets of a server.
pub struct Sockets {
    listeners: Vec<Listener>,
    admin: Option<Admin>,
}

impl Sockets {
    /// Listens to clients, who wait until [`run`], and to operators.
    ///
    /// # Errors
    /// Where an address means nothing or is taken.
    pub fn open(globals: &Globals) -> anyhow::Result<Sockets> {
        let listeners = listen(globals)?;
        let admin = globals.admin.as_deref().map(Admin::listen).transpose()?;
        Ok(Sockets { listeners, admin })
    }
}

/// Serves until a signal says stop; the exit code says whether everything is durable.
pub async fn run(
    config: Config,
    sockets: Sockets,
    mut confined: Confined,
    mut reloader: Option<Reloader>,
) -> anyhow::Result<ExitCode> {
    let Config { plan, exports, tls } = config;
    let globals = plan.globals;
    let mut signals = Signals::catch()?;
    let Sockets { listeners, admin } = sockets;
    let policy = tls.as_ref().map(|(_, policy)| *policy);
    let (stop, stopped) = oneshot::channel();
    let budget = Budget::new(globals.memory_max);
    let shared = Arc::new(Shared {
        exports,
        memory: Memory { pool: Arc::new(Pool::default()), budget },
        tls: RwLock::new(tls),
        handshake_timeout: globals.handshake_timeout,
        busy_poll: globals.busy_poll,
        shutdown_timeout: globals.shutdown_timeout,
        stop: stopped.shared(),
    });
    let mut crew = Crew::start(globals.workers, globals.engine, &shared)?;
    let keeper = crew.keeper().clone();
    let uris = uris(&listeners, policy)?;
    let places = Arc::new(Semaphore::new(globals.connections_max));
    confined.calls(globals.sandbox)?;
    confined.log();
    announce(&uris);
    let hangups = Notify::new();
    let on_hangup = if reloader.is_some() { Hangup::Reloads(&hangups) } else { Hangup::Stops };
    // On the heap, because they are left where they are if the end does not wait for them: whoever drops a sync that a
    // disk still works on must take what it was to store for lost.
    let mut reloads = Box::pin(reload_at(&hangups, reloader.as_mut(), &shared, &keeper));
    // Heard to the end: an order that was begun is carried out.
    let mut hearing = Box::pin(hear(admin.as_ref(), &shared));
    tokio::select! {
        never = accept_all(&listeners, &mut crew, &places) => match never {},
        never = &mut hearing => match never {},
        never = &mut reloads => match never {},
        () = signals.stop(&shared, on_hangup) => {}
    }
    tell_systemd(NotifyState::Stopping);
    drop(listeners);
    let _workers_listen_while_they_live = stop.send(());
    let mut finishing = Box::pin(finish(&shared, &places, globals.connections_max));
    let code = tokio::select! {
        code = &mut finishing => code,
        never = &mut hearing => match never {},
        never = &mut reloads => match never {},
        () = signals.hurry(&shared) => {
            tracing::warn!("another signal: leaving at once");
            abandon(&shared)
        }
    };
    std::mem::forget((finishing, hearing, reloads));
    Ok(code)
}

fn listen(globals: &Globals) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Listener::inherited()?;
    let mut addresses = Vec::new();
    for address in &globals.listen {
        addresses.extend(resolve(address).with_context(|| format!("--listen {address}"))?);
    }
    listeners.extend(Listener::tcp(&addresses)?);
    for path in &globals.unix {
        listeners.push(Listener::unix(path, globals.unix_access)?);
    }
    for port in &globals.vsock {
        listeners.push(Listener::vsock(*port)?);
    }
    if listeners.is_empty() {
        listeners.extend(Listener::tcp(&[DEFAULT_ADDRESS])?);
    }
    Ok(listeners)
}

/// Where clients connect.
fn uris(listeners: &[Listener], encryption: Option<Encryption>) -> anyhow::Result<Vec<Uri>> {
    let tls = if encryption == Some(Encryption::Required) { Tls::Required } else { Tls::Off };
    let uri = |listener: &Listener| {
        listener.uri().map(|uri| Uri { tls, ..uri }).context("cannot tell the listening address")
    };
    listeners.iter().map(uri).collect()
}

/// Tells people (log) and scripts (standard output) where clients connect.
fn announce(uris: &[Uri]) {
    for uri in uris {
        tracing::info!(%uri, "listening");
        if let Err(error) = logging::announce(&format!("{uri}\n")) {
            tracing::warn!(%error, "cannot tell the URI on standard output");
        }
    }
    tell_systemd(NotifyState::Ready);
}

/// Tells whoever started the server how far it is (`sd_notify(3)`), if that is wanted.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// Serves operators, if there is a socket for them.
async fn hear(admin: Option<&Admin>, shared: &Shared) -> std::convert::Infallible {
    match admin {
        Some(admin) => admin.serve(&shared.exports).await,
        None => std::future::pending().await,
    }
}

/// Accepts on all listeners and hands connections to the workers.
async fn accept_all(
    listeners: &[Listener],
    crew: &mut Crew,
    places: &Arc<Semaphore>,
) -> std::convert::Infallible {
    let accept_one = |listener| async move {
        let listener: &Listener = listener;
        (listener.accept().await, listener)
    };
    let mut accepting: futures::stream::FuturesUnordered<_> = listeners.iter().map(accept_one).collect();
    loop {
        let accepted = tokio::select! {
            accepted = futures::StreamExt::next(&mut accepting) => accepted,
            () = crew.see_to_it(), if crew.has_given() => continue,
        };
        let Some((socket, listener)) = accepted else { return std::future::pending().await };
        accepting.push(accept_one(listener));
        let Ok(permit) = places.clone().try_acquire_owned() else {
            tracing::warn!(client = %socket, "too many connections (--max-connections): closing this one");
            continue;
        };
        crew.serve(socket, permit);
    }
}

/// Reads the configuration again whenever it is asked to, if there is one.
async fn reload_at(
    hangups: &Notify,
    reloader: Option<&mut Reloader>,
    shared: &Shared,
    keeper: &mpsc::UnboundedSender<Task>,
) -> std::convert::Infallible {
    match reloader {
        Some(reloader) => reloader.serve(hangups, shared, keeper).await,
        None => std::future::pending().await,
    }
}

/// Waits for the connections to end, then makes everything durable; neither for ever.
async fn finish(shared: &Shared, places: &Semaphore, connections_max: usize) -> ExitCode {
    let deadline = Instant::now() + shared.shutdown_timeout;
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    let mut code = ExitCode::SUCCESS;
    if timeout_at(deadline, places.acquire_many(all)).await.is_err() {
        tracing::error!("some clients did not fetch their last replies in time (--shutdown-timeout)");
        code = ExitCode::FAILURE;
    }
    // Clients that took all the time are not to take that of the disks.
    let deadline = deadline.max(Instant::now() + CLOSE_MIN.min(shared.shutdown_timeout));
    let closings = shared.exports.unclosed().into_iter().map(|export| async move {
        let span = export.span();
        let mut closing = Box::pin(export.close().instrument(span.clone()));
        let closed = timeout_at(deadline, &mut closing).await;
        let closed = span.in_scope(|| match closed {
            Ok(Ok(())) => {
                export.counters().log(export.name(), "closed");
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "not everything is durable");
                Err(())
            }
            Err(_elapsed) => is_stable(&export, "its disk did not store it in time (--shutdown-timeout)"),
        });
        drop(span);
        // See where the others are left.
        std::mem::forget(closing);
        std::mem::forget(export);
        closed
    });
    if join_all(closings).await.contains(&Err(())) {
        code = ExitCode::FAILURE;
    }
    code
}

/// Leaves everything as it is; the exit code says whether all of it is stable.
fn abandon(shared: &Shared) -> ExitCode {
    let why = "the server did not wait for it";
    let all_stable = shared
        .exports
        .unclosed()
        .iter()
        .all(|export| export.span().in_scope(|| is_stable(export, why).is_ok()));
    if all_stable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells what is not stable of an export that is left as it is, if anything.
fn is_stable(export: &Export, why: &str) -> Result<(), ()> {
    let health = export.health();
    if health.unstable_bytes == 0 && health.poison.is_none() {
        return Ok(());
    }
    tracing::error!(
        unstable_bytes = health.unstable_bytes,
        poison = health.poison,
        "what was acknowledged is not known to be stable: {why}"
    );
    Err(())
}

/// What SIGHUP does.
enum Hangup<'a> {
    /// Where there is a configuration file.
    Reloads(&'a Notify),
    /// Where there is none: a terminal has gone.
    Stops,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    report: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Signals> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Signals {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            report: catch(SignalKind::user_defined1())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    /// Returns at SIGTERM or SIGINT; logs the counters at SIGUSR1.
    async fn stop(&mut self, shared: &Shared, hangup: Hangup<'_>) {
        loop {
            match (self.next().await, &hangup) {
                (Heard::Stop(name), _) => return tracing::info!("{name}: finishing what was received"),
                (Heard::Hangup, Hangup::Stops) => {
                    return tracing::info!(
                        "SIGHUP, and no --config to read again: finishing what was received"
                    );
                }
                (Heard::Hangup, Hangup::Reloads(hangups)) => hangups.notify_one(),
                (Heard::Report, _) => report(shared),
            }
        }
    }

    /// The same while the server stops already: returns when somebody wants it to be quicker. Whoever signals a process
    /// and then its group, as timeout(1) does, has one wish.
    async fn hurry(&mut self, shared: &Shared) {
        let since = Instant::now();
        loop {
            match self.next().await {
                Heard::Stop(_) if since.elapsed() >= SAME_WISH => return,
                Heard::Stop(name) => tracing::debug!("{name} once more, at the same time"),
                Heard::Hangup => tracing::info!("SIGHUP is ignored: the server is stopping"),
                Heard::Report => report(shared),
            }
        }
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Heard::Stop("SIGINT"),
            _ = self.hangup.recv() => Heard::Hangup,
            _ = self.report.recv() => Heard::Report,
        }
    }
}

/// A signal.
enum Heard {
    Stop(&'static str),
    Hangup,
    Report,
}

fn report(shared: &Shared) {
    for export in shared.exports.all() {
        let health = export.health();
        export.counters().log(export.name(), "counters");
        let (dirty_bytes, unstable_bytes) = (health.dirty_bytes, health.unstable_bytes);
        tracing::info!(export = export.name(), dirty_bytes, unstable_bytes, poison = health.poison, "health");
    }
}
