//! `nbd-attach attach --keep`: a device that outlives its server.
//!
//! This process keeps its own descriptors of the sockets that the kernel was given, and is told by poll(2)
//! when one of them has died: because the server ended, the link was cut, or the driver gave up on a request.
//! It then dials again, looks whether there is still the same export behind it, and hands the new socket to
//! the driver, which sends again what was in flight. It never touches the device, and asks for no memory that
//! the device might have to make room for.

mod same;
mod watch;

use crate::attach::Held;
use crate::config::{AttachConfig, Output};
use crate::dial::{DialError, dial, hasten};
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::negotiate::{NegotiateError, negotiate};
use crate::netlink::client::NetlinkError;
use common::handshake::Export;
use futures::stream::{FuturesUnordered, StreamExt};
use nix::sys::socket::{getsockopt, sockopt};
use same::Difference;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep};

/// For connecting, and for the handshake.
const PATIENCE: Duration = Duration::from_secs(5);
/// The driver is quick, unless another device's server hangs.
const DRIVER_PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries, at first; twice as long after each …
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The driver may take this long to see what we see: that a connection is dead.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(3);
const ADOPTION_PAUSE: Duration = Duration::from_millis(50);
/// How often to look whether the device is still ours.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The device was detached.
    Detached,
    /// Whoever started us wants us to end; the device stays, with nobody to reconnect it.
    Left(&'static str),
}

/// Why a connection was not renewed this time.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    #[error("not reconnecting: {0}")]
    Different(#[from] Difference),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the driver does not take a new connection: to it, no old one is dead")]
    NotAdopted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What happens to a device, for scripts.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Dead { connection: usize },
    Failed { connection: usize, reason: &'a str },
    Reconnected { connection: usize, seconds: f64 },
    Resized { size_bytes: u64 },
}

/// Keeps a device's connections alive until it is detached or a signal comes.
///
/// # Errors
/// What happens cannot be told, or sockets cannot be watched; the device stays as it is.
pub async fn keep(
    config: &AttachConfig,
    host: &Host,
    held: Held,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
) -> io::Result<Ended> {
    watch::stay_in_memory();
    let (deaths, mut dead) = mpsc::unbounded_channel();
    let connections = held.sockets.len();
    for number in 0..connections {
        watch::until_dead(number, held.sockets.clone(), number, deaths.clone())?;
    }
    let Held { attached, export, .. } = held;
    let index = crate::device::Index::new(attached.index).map_err(io::Error::other)?;
    let keeper = Keeper {
        config,
        host,
        index,
        backend: attached.backend,
        block_size: attached.block_size,
        size: Cell::new(attached.size_bytes),
        export: RefCell::new(export),
        out: RefCell::new(out),
    };
    let mut redials = FuturesUnordered::new();
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            Some(number) = dead.recv() => {
                if !keeper.is_ours() {
                    return Ok(Ended::Detached);
                }
                keeper.tell(&Event::Dead { connection: number + 1 })?;
                redials.push(keeper.renew(number));
            }
            Some(renewed) = redials.next() => {
                let Some((number, socket)) = renewed? else { return Ok(Ended::Detached) };
                watch::until_dead(number, socket, 0, deaths.clone())?;
            }
            _ = look.tick() => if !keeper.is_ours() {
                return Ok(Ended::Detached);
            },
            signal = interrupt.caught() => return Ok(Ended::Left(signal)),
        }
    }
}

struct Keeper<'a> {
    config: &'a AttachConfig,
    host: &'a Host,
    index: crate::device::Index,
    backend: String,
    block_size: u32,
    /// Bytes of the device.
    size: Cell<u64>,
    /// What the server last said that was accepted.
    export: RefCell<Export>,
    out: RefCell<&'a mut dyn Write>,
}

impl Keeper<'_> {
    /// Whether the device is still what we attached.
    fn is_ours(&self) -> bool {
        self.host.sysfs.device(self.index).backend().as_deref() == Some(&self.backend)
    }

    /// Tries until a connection is there again; none if the device has gone.
    async fn renew(&self, number: usize) -> io::Result<Option<(usize, Arc<[OwnedFd]>)>> {
        let (begun, mut pause) = (Instant::now(), PAUSE_MIN);
        let mut told = String::new();
        while self.is_ours() {
            match self.reconnect().await {
                Ok(socket) => {
                    let seconds = begun.elapsed().as_secs_f64();
                    self.tell(&Event::Reconnected { connection: number + 1, seconds })?;
                    return Ok(Some((number, socket)));
                }
                Err(failure) => {
                    let reason = failure.to_string();
                    if reason != told {
                        self.tell(&Event::Failed { connection: number + 1, reason: &reason })?;
                        told = reason;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(None)
    }

    async fn reconnect(&self) -> Result<Arc<[OwnedFd]>, Failure> {
        let mut link = dial(&self.config.uri.transport, PATIENCE).await?;
        let export = negotiate(link.stream(), &self.config.uri.export, PATIENCE).await?;
        same::check(&self.export.borrow(), &export)?;
        let socket = link.into_fd()?;
        hasten(&socket, self.config.timeout);
        let socket: Arc<[OwnedFd]> = Arc::new([socket]);
        self.hand_over(&socket).await?;
        self.grow(&export).await?;
        *self.export.borrow_mut() = export;
        Ok(socket)
    }

    /// Gives the driver a connection in the place of a dead one. Where to the driver none is dead, it says
    /// yes and drops the connection; only its send timeout tells whether it was taken.
    async fn hand_over(&self, socket: &Arc<[OwnedFd]>) -> Result<(), Failure> {
        let until = Instant::now() + ADOPTION_PATIENCE;
        loop {
            let (index, backend) = (self.index, &self.backend);
            self.host.netlink.reconnect(index, backend, socket.clone(), DRIVER_PATIENCE).await?;
            let timeout = getsockopt(&socket[0], sockopt::SendTimeout).map_err(io::Error::from)?;
            if self.config.timeout.is_zero() || timeout.tv_sec() > 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Failure::NotAdopted);
            }
            sleep(ADOPTION_PAUSE).await;
        }
    }

    /// Makes the device as large as the export, once it has a connection: with none, the driver would wait
    /// for one and keep it out at the same time.
    async fn grow(&self, export: &Export) -> Result<(), Failure> {
        let size = export.size - export.size % u64::from(self.block_size);
        if size > self.size.get() {
            self.host.netlink.resize(self.index, &self.backend, size, DRIVER_PATIENCE).await?;
            self.size.set(size);
            self.tell(&Event::Resized { size_bytes: size })?;
        }
        Ok(())
    }

    fn tell(&self, event: &Event<'_>) -> io::Result<()> {
        let device = self.index;
        match event {
            Event::Dead { connection } => tracing::warn!("{device}: connection {connection} is dead"),
            Event::Failed { connection, reason } => {
                tracing::warn!("{device}: connection {connection}: {reason}");
            }
            Event::Reconnected { connection, seconds } => {
                tracing::info!("{device}: connection {connection} is back after {seconds:.1} s");
            }
            Event::Resized { size_bytes } => tracing::info!("{device} has {size_bytes} bytes now"),
        }
        if self.config.output == Output::Json {
            let mut out = self.out.borrow_mut();
            writeln!(out, "{}", serde_json::to_string(event).map_err(io::Error::from)?)?;
            out.flush()?;
        }
        Ok(())
    }
}
