//! The server's life: listen, hand connections to workers, stop in good order.

mod crew;
mod reload;

use std::io::Write;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, RwLock};

use anyhow::Context;
use common::handshake::server::Encryption;
use common::uri::{Tls, Uri};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::join_all;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::admin::Admin;
use crate::buf::{Budget, Pool};
use crate::config::{Config, DEFAULT_ADDRESS, Globals, resolve};
use crate::confine::Confined;
use crate::listen::{Listener, make_room};
use crate::session::Memory;
use crate::worker::{Shared, Task};
use crew::Crew;

pub use reload::Reloader;

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
    pub async fn open(globals: &Globals) -> anyhow::Result<Sockets> {
        make_room(globals.connections_max);
        let listeners = listen(globals).await?;
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
    let places = Arc::new(Semaphore::new(globals.connections_max));
    confined.calls(globals.sandbox)?;
    confined.log();
    announce(&listeners, policy)?;

    let hangup = match &mut reloader {
        Some(reloader) => Hangup::Reloads(reloader, &keeper),
        None => Hangup::Stops,
    };
    // Heard to the end: an order that was begun is carried out.
    let mut hearing = pin!(hear(admin.as_ref(), &shared));
    tokio::select! {
        never = accept_all(&listeners, &mut crew, &places) => match never {},
        never = &mut hearing => match never {},
        () = signals.stop(&shared, hangup) => {}
    }
    tell_systemd(NotifyState::Stopping);
    drop(listeners);
    let _workers_listen_while_they_live = stop.send(());
    tokio::select! {
        code = finish(&shared, &places, globals.connections_max) => code,
        never = &mut hearing => match never {},
        () = signals.stop(&shared, Hangup::IsIgnored) => {
            tracing::error!("second signal: leaving at once; what was not durable may be lost");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn listen(globals: &Globals) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Listener::inherited()?;
    for address in &globals.listen {
        for address in resolve(address).with_context(|| format!("--listen {address}"))? {
            listeners.push(Listener::tcp(address).await?);
        }
    }
    for path in &globals.unix {
        listeners.push(Listener::unix(path)?);
    }
    for port in &globals.vsock {
        listeners.push(Listener::vsock(*port)?);
    }
    if listeners.is_empty() {
        listeners.push(Listener::tcp(DEFAULT_ADDRESS).await?);
    }
    Ok(listeners)
}

/// Tells people (log) and scripts (standard output) where clients connect.
fn announce(listeners: &[Listener], encryption: Option<Encryption>) -> anyhow::Result<()> {
    let tls = if encryption == Some(Encryption::Required) { Tls::Required } else { Tls::Off };
    let mut stdout = std::io::stdout().lock();
    for listener in listeners {
        let uri = Uri { tls, ..listener.uri().context("cannot tell the listening address")? };
        tracing::info!(%uri, "listening");
        let _nobody_may_read = writeln!(stdout, "{uri}");
    }
    let _nobody_may_read = stdout.flush();
    tell_systemd(NotifyState::Ready);
    Ok(())
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
        let Some((socket, listener)) = futures::StreamExt::next(&mut accepting).await else {
            return std::future::pending().await;
        };
        accepting.push(accept_one(listener));
        let Ok(permit) = places.clone().try_acquire_owned() else {
            tracing::warn!(client = %socket, "too many connections (--max-connections): closing this one");
            continue;
        };
        crew.serve(socket, permit);
    }
}

/// Waits for the connections to end, then makes everything durable.
async fn finish(shared: &Shared, places: &Semaphore, connections_max: usize) -> anyhow::Result<ExitCode> {
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    let mut code = ExitCode::SUCCESS;
    if timeout(shared.shutdown_timeout, places.acquire_many(all)).await.is_err() {
        tracing::error!("some clients did not fetch their last replies in time (--shutdown-timeout)");
        code = ExitCode::FAILURE;
    }
    let closings = shared.exports.unclosed().into_iter().map(|export| async move {
        let closed = export.close().await;
        tracing::info!(export = export.name(), counters = %export.counters(), "closed");
        closed.map_err(|error| tracing::error!(export = export.name(), %error, "not everything is durable"))
    });
    if join_all(closings).await.contains(&Err(())) {
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

/// What SIGHUP does.
enum Hangup<'a> {
    /// Where there is a configuration file.
    Reloads(&'a mut Reloader, &'a mpsc::UnboundedSender<Task>),
    /// Where there is none: a terminal has gone.
    Stops,
    /// While the server stops already.
    IsIgnored,
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
    async fn stop(&mut self, shared: &Shared, mut hangup: Hangup<'_>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => match &mut hangup {
                    Hangup::Reloads(reloader, keeper) => reloader.reload(shared, keeper).await,
                    Hangup::Stops => return,
                    Hangup::IsIgnored => {}
                },
                _ = self.report.recv() => {
                    for export in shared.exports.all() {
                        let health = export.health();
                        tracing::info!(
                            export = export.name(),
                            counters = %export.counters(),
                            dirty_bytes = health.dirty_bytes,
                            poison = health.poison,
                            "counters"
                        );
                    }
                }
            }
        }
    }
}
