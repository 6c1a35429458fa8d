//! `nbd-attach attach --keep`: a device that outlives its server.
//!
//! This process keeps its own descriptors of the sockets that the kernel was given, and is told by poll(2)
//! when one of them has died: because the server ended, the link was cut, or the driver gave up on a request.
//! It then dials again, looks whether there is still the same export behind it, and hands the new socket to
//! the driver, which sends again what was in flight. It never touches the device, and asks for no memory that
//! the device might have to make room for.
//!
//! ```text
//!  keep ─▶ sentry     a connection has died          ─▶ renew    make it again
//!       ─▶ orphans    connections that an earlier keeper made, of which only the kernel knows
//!       ─▶ growth     the export has grown           ─▶ same     is it the same export?
//!       ─▶ wear       TLS keys are worn out          ─▶ chronicle   what happened, for people and scripts
//! ```

mod chronicle;
mod growth;
mod memory;
mod orphans;
mod renew;
mod same;
mod sentry;
mod wear;

pub use memory::stay_in_memory;

use crate::attach::{Attached, Held};
use crate::config::AttachConfig;
use crate::device::Index;
use crate::event::Event;
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::netlink::client::{NetlinkError, Socket};
use crate::opener::{Ends, Opener};
use crate::registry::{Connection, Record};
use chronicle::Chronicle;
use common::handshake::Export;
use futures::stream::{FuturesUnordered, StreamExt};
use nix::sys::socket::{Shutdown, shutdown};
use renew::Fresh;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};
use wear::Wear;

/// For connecting, for TLS and for the handshake, each.
const PATIENCE: Duration = Duration::from_secs(5);
/// The driver is quick, unless another device's server hangs.
const DRIVER_PATIENCE: Duration = Duration::from_secs(20);
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
    let Held { attached, record, sockets, cipher } = held;
    let index = Index::new(attached.index).map_err(io::Error::other)?;
    let ends = record.ends.clone();
    let (deaths, dead) = mpsc::unbounded_channel();
    let keeper = Keeper {
        config,
        host,
        opener: Opener::knowing(&config.uri, config.tls.as_ref(), &ends),
        index,
        backend: attached.backend,
        block_size: attached.block_size,
        size: Cell::new(attached.size_bytes),
        told: RefCell::new(vec![attached.size_bytes; config.connections]),
        export: RefCell::new(record.export.export()),
        grown: Cell::new(0),
        alive: RefCell::new(BTreeMap::new()),
        deaths,
        chronicle: Chronicle::begin(host, index, record, config.output, out)?,
    };
    let known = sockets.len();
    for (place, (socket, ends)) in sockets.into_iter().zip(ends).enumerate() {
        keeper.watch(place, socket, ends)?;
    }
    let ended = keeper.run(dead, known, Wear::new(cipher, config.renew_after), interrupt).await?;
    keeper.chronicle.end(ended)?;
    Ok(ended)
}

/// Becomes the keeper of a device that somebody else attached: the driver is told how long to wait, and of its
/// connections nothing is known.
///
/// # Errors
/// The device is attached no more, or the driver would not.
pub async fn take_over(
    config: &AttachConfig,
    host: &Host,
    attached: Attached,
    mut record: Record,
) -> Result<Held, NetlinkError> {
    let index = Index::new(attached.index).map_err(|error| NetlinkError::Broken(error.to_string()))?;
    let waits = [config.timeout, config.dead_connection_timeout];
    host.netlink.wait_for(index, Some(&attached.backend), waits, DRIVER_PATIENCE).await?;
    record.attach = config.typed.clone();
    record.connections = vec![Connection::Unknown; config.connections];
    record.ends.resize(config.connections, None);
    Ok(Held { attached, record, sockets: vec![], cipher: None })
}

struct Keeper<'a> {
    config: &'a AttachConfig,
    host: &'a Host,
    opener: Opener<'a>,
    index: Index,
    backend: String,
    block_size: u32,
    /// Bytes of the device.
    size: Cell<u64>,
    /// Bytes of the export as each connection knows it; some servers hold each to what it was told.
    told: RefCell<Vec<u64>>,
    /// Bytes of the export as the server last told it, if it has grown.
    grown: Cell<u64>,
    /// What the server last said that was accepted.
    export: RefCell<Export>,
    /// The connections that live, by their place.
    alive: RefCell<BTreeMap<usize, Socket>>,
    deaths: mpsc::UnboundedSender<usize>,
    chronicle: Chronicle<'a>,
}

impl Keeper<'_> {
    /// Waits for what happens and deals with it. The first connections, so many, are watched already.
    async fn run(
        &self,
        mut dead: mpsc::UnboundedReceiver<usize>,
        known: usize,
        mut wear: Wear,
        interrupt: &mut Interrupt,
    ) -> io::Result<Ended> {
        let mut redials = FuturesUnordered::new();
        let mut look = interval(LOOK_EVERY);
        let mut orphans = std::pin::pin!(self.adopt_orphans(known..self.config.connections));
        let mut growth = std::pin::pin!(self.watch_growth());
        loop {
            tokio::select! {
                Some(place) = dead.recv() => {
                    self.alive.borrow_mut().remove(&place);
                    if !self.is_ours() {
                        return Ok(Ended::Detached);
                    }
                    self.chronicle.connection(place, Connection::Dead, None);
                    self.chronicle.tell(Event::Dead { connection: Some(place + 1) })?;
                    redials.push(self.renew(place));
                }
                Some(renewed) = redials.next() => {
                    let Some((place, fresh)) = renewed? else { return Ok(Ended::Detached) };
                    wear.changed(fresh.cipher);
                    self.adopt(place, fresh)?;
                }
                failed = &mut orphans => return failed.map(|never| match never {}),
                failed = &mut growth => return failed.map(|never| match never {}),
                _ = look.tick() => {
                    if !self.is_ours() {
                        return Ok(Ended::Detached);
                    }
                    if self.is_to_let_go() {
                        self.let_go();
                    } else if redials.is_empty() {
                        self.renew_worn(&mut wear)?;
                    }
                },
                signal = interrupt.caught() => return Ok(Ended::Left(signal)),
            }
        }
    }

    /// Whether the device is still what we attached.
    fn is_ours(&self) -> bool {
        self.host.sysfs.device(self.index).backend().as_deref() == Some(&self.backend)
    }

    /// Whether whoever detaches it wants no connections any more.
    fn is_to_let_go(&self) -> bool {
        self.host.registry.is_to_let_go(self.index, &self.backend)
    }

    /// A connection that the driver has taken.
    fn adopt(&self, place: usize, fresh: Fresh) -> io::Result<()> {
        self.chronicle.cipher(fresh.cipher);
        self.watch(place, fresh.socket, fresh.ends)
    }

    /// A connection that lives, until poll(2) says otherwise.
    fn watch(&self, place: usize, socket: Socket, ends: Option<Ends>) -> io::Result<()> {
        self.chronicle.connection(place, Connection::Alive, ends);
        self.alive.borrow_mut().insert(place, socket.clone());
        sentry::until_dead(place, socket, self.deaths.clone())
    }

    /// Gives up one connection whose keys are worn out, or that knows of a smaller export; its death brings a new one.
    fn renew_worn(&self, wear: &mut Wear) -> io::Result<()> {
        let device = self.host.sysfs.device(self.index);
        let outgrown = self.outgrown().filter(|place| self.alive.borrow().contains_key(place));
        let worn = || wear.worn(&device, &self.alive.borrow());
        let Some(place) = outgrown.or_else(worn) else { return Ok(()) };
        self.chronicle.tell(Event::Renewing { connection: place + 1 })?;
        if let Some(socket) = self.alive.borrow().get(&place) {
            cut(socket);
        }
        Ok(())
    }

    /// Whoever detaches the device by force need not wait for its server.
    fn let_go(&self) {
        self.alive.borrow().values().for_each(cut);
    }

    /// Takes note of what a server said on a new connection, and makes the device larger if the export is.
    async fn accept(&self, place: usize, export: &Export) -> Result<(), renew::Failure> {
        if let Some(told) = self.told.borrow_mut().get_mut(place) {
            *told = export.size;
        }
        self.grow().await?;
        self.chronicle.export(export);
        self.export.borrow_mut().clone_from(export);
        Ok(())
    }

    fn told_since(&self, begun: Instant, place: usize) -> io::Result<()> {
        let seconds = begun.elapsed().as_secs_f64();
        self.chronicle.tell(Event::Reconnected { connection: place + 1, seconds })
    }
}

/// A socket that is dead by itself is what is wanted, too.
fn cut(socket: &Socket) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}
