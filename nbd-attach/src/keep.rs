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
//!       ─▶ growth     the export has grown           ─▶ slow     a request takes longer than the driver waits
//!       ─▶ wear       TLS keys are worn out          ─▶ disk     which disk is it, if the server cannot tell?
//!       ─▶ chronicle  what happened, for people and scripts ─▶ notifier  for systemd
//! ```

mod chronicle;
mod disk;
mod growth;
mod memory;
mod notifier;
mod orphans;
mod renew;
mod sentry;
mod slow;
mod wear;

pub use memory::stay_in_memory;

use crate::attach::{Answer, Attached, Held};
use crate::background;
use crate::config::AttachConfig;
use crate::device::Index;
use crate::event::Event;
use crate::health::lives;
use crate::host::Host;
use crate::interrupt::{Caught, Interrupt};
use crate::netlink::client::{NetlinkError, Socket};
use crate::netlink::destroy::destroy;
use crate::opener::{Ends, Opener};
use crate::registry::{Connection, Lock, Record, Request};
use crate::revive::probe;
use crate::same::Told;
use crate::tls::kernel::Cipher;
use crate::usage::uses_of;
use chronicle::Chronicle;
use disk::Disk;
use futures::stream::{FuturesUnordered, StreamExt};
use nix::sys::socket::{Shutdown, shutdown};
use renew::{Fresh, PAUSE_MAX};
use slow::Slowness;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, interval, sleep};
use tracing_appender::non_blocking::NonBlocking;
use wear::{Since, Wear};

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
    /// Another process keeps it from now on.
    HandedOver,
}

/// Keeps a device's connections alive until it is detached or a signal comes.
///
/// # Errors
/// Sockets cannot be watched; the device stays as it is.
pub async fn keep(
    config: &AttachConfig,
    host: &Host,
    held: Held,
    interrupt: &mut Interrupt,
    out: NonBlocking,
) -> io::Result<Ended> {
    let Held { attached, record, sockets, cipher, lock: _lock, answer } = held;
    let index = Index::new(attached.index).map_err(io::Error::other)?;
    let ends = record.ends.clone();
    let (deaths, dead) = mpsc::unbounded_channel();
    host.registry.done(Request::HandOver, &record.backend);
    let keeper = Keeper {
        config,
        host,
        opener: Opener::knowing(&config.uri, config.tls.as_ref(), &ends),
        index,
        backend: attached.backend.clone(),
        block_size: attached.block_size,
        size: Cell::new(attached.size_bytes),
        sizes: RefCell::new(vec![attached.size_bytes; config.connections]),
        told: RefCell::new(record.told()),
        grown: Cell::new(0),
        larger: Notify::new(),
        disk: Disk::default(),
        slowness: Slowness::default(),
        alive: RefCell::new(BTreeMap::new()),
        stuck: RefCell::default(),
        deaths,
        chronicle: Chronicle::begin(host, index, record, config.output, out.clone()),
    };
    let known = sockets.len();
    for (place, (socket, ends)) in sockets.into_iter().zip(ends).enumerate() {
        keeper.watch(place, socket, ends)?;
    }
    // Only the device's own count includes the bytes sent by an earlier keeper's connections.
    let wear = Wear::new(cipher, config.renew_after, if known == 0 { Since::Ever } else { Since::Now });
    let ended = tokio::select! {
        ended = keeper.run(dead, known, wear, interrupt) => ended?,
        never = keeper.announce(answer, &attached, out) => match never {},
    };
    keeper.chronicle.end(ended);
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
    lock: Option<Lock>,
    answer: Answer,
) -> Result<Held, NetlinkError> {
    let index = Index::new(attached.index).map_err(|error| NetlinkError::Broken(error.to_string()))?;
    let waits = [config.timeout, config.dead_connection_timeout];
    host.netlink.wait_for(index, Some(&attached.backend), waits, DRIVER_PATIENCE).await?;
    record.attach = config.typed.clone();
    record.connections = vec![Connection::Unknown; config.connections];
    record.ends.resize(config.connections, None);
    let cipher = record.cipher.clone().map(Cipher::named);
    Ok(Held { attached, record, sockets: vec![], cipher, lock, answer })
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
    sizes: RefCell<Vec<u64>>,
    /// Bytes of the export as the server last told it, if it has grown.
    grown: Cell<u64>,
    /// A connection may have told of more.
    larger: Notify,
    /// Which disk it is, where the server cannot tell.
    disk: Disk,
    /// Requests that take longer than the driver waits.
    slowness: Slowness,
    /// What the server last said that was accepted.
    told: RefCell<Told>,
    /// The connections that live, by their place.
    alive: RefCell<BTreeMap<usize, Socket>>,
    /// Places of an earlier keeper's connections that could not be ended.
    stuck: RefCell<BTreeSet<usize>>,
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
        let mut orphans = std::pin::pin!(self.adopt_orphans((known..self.config.connections).collect()));
        let mut growth = std::pin::pin!(futures::future::join(self.watch_growth(), self.grow()));
        let mut slow = String::new();
        loop {
            tokio::select! {
                Some(place) = dead.recv() => {
                    self.alive.borrow_mut().remove(&place);
                    if !self.is_ours() {
                        return Ok(Ended::Detached);
                    }
                    redials.push(self.renew(place));
                }
                Some(renewed) = redials.next() => {
                    let Some((place, fresh)) = renewed? else { return Ok(Ended::Detached) };
                    wear.changed(fresh.cipher.clone());
                    self.adopt(place, fresh)?;
                }
                failed = &mut orphans => return failed.map(|never| match never {}),
                (never, _) = &mut growth => match never {},
                _ = look.tick() => {
                    if !self.is_ours() {
                        return Ok(Ended::Detached);
                    }
                    self.chronicle.refresh();
                    if self.host.registry.is_asked(Request::HandOver, &self.backend) {
                        return Ok(Ended::HandedOver);
                    }
                    if self.host.registry.is_asked(Request::LetGo, &self.backend) {
                        self.let_go();
                    } else if redials.is_empty() {
                        self.renew_worn(&mut wear);
                        if let Err(failure) = self.mind_slow_requests().await {
                            self.tell_once(None, &failure, &mut slow);
                        }
                    }
                },
                caught = interrupt.caught() => if let Some(ended) = self.asked(caught) { return Ok(ended) },
            }
        }
    }

    /// Tells of a device that was there before as soon as it answers.
    async fn announce(&self, answer: Answer, attached: &Attached, mut out: NonBlocking) -> Infallible {
        if answer == Answer::Awaited {
            while let Err(error) = probe(&self.host.sysfs.device(self.index)).await {
                tracing::warn!("{}: {error}; it is kept, and told of when it answers", self.index);
                sleep(PAUSE_MAX).await;
            }
            // Its reader may have had enough.
            let _ = attached.print(self.config.output, &mut out);
        }
        if let Err(error) = background::ready() {
            tracing::warn!("{}: the command that waits is not told: {error}", self.index);
        }
        pending().await
    }

    /// What a signal leads to.
    fn asked(&self, caught: Caught) -> Option<Ended> {
        match caught {
            Caught::End(signal) => Some(Ended::Left(signal)),
            Caught::Please(signal) => {
                let uses = uses_of(&self.host.sysfs.device(self.index)).unwrap_or_default();
                let Some(used) = uses.first() else { return Some(Ended::Left(signal)) };
                self.chronicle.tell(Event::Stayed { signal: signal.to_owned(), because: used.to_string() });
                None
            }
            Caught::Reread => {
                tracing::info!("{}: SIGHUP: reading certificates and looking names up again", self.index);
                self.opener.forget_addresses();
                if let Some(tls) = &self.config.tls {
                    tls.forget();
                }
                None
            }
        }
    }

    /// Whether the device is still what we attached.
    fn is_ours(&self) -> bool {
        self.host.sysfs.device(self.index).backend().as_deref() == Some(&self.backend)
    }

    /// A connection that the driver has taken: whatever becomes of the rest, it is ours to watch.
    fn adopt(&self, place: usize, fresh: Fresh) -> io::Result<()> {
        let Fresh { socket, ends, cipher, told } = fresh;
        self.chronicle.cipher(cipher.as_ref());
        self.chronicle.told(&told);
        if let Some(size) = self.sizes.borrow_mut().get_mut(place) {
            *size = told.export.size;
        }
        *self.told.borrow_mut() = told;
        self.slowness.adopted(place);
        self.stuck.borrow_mut().remove(&place);
        self.watch(place, socket, ends)?;
        self.larger.notify_one();
        Ok(())
    }

    /// A connection that lives, until poll(2) says otherwise.
    fn watch(&self, place: usize, socket: Socket, ends: Option<Ends>) -> io::Result<()> {
        self.chronicle.connection(place, Connection::Alive, ends);
        self.alive.borrow_mut().insert(place, socket.clone());
        sentry::until_dead(place, socket, self.deaths.clone())
    }

    /// Gives up connections that know of a smaller export, or one whose keys are worn out; their death brings new ones.
    fn renew_worn(&self, wear: &mut Wear) {
        let Some(all) = self.living() else { return };
        let mut places = self.outgrown(&all);
        if places.is_empty() {
            places.extend(wear.worn(&self.host.sysfs.device(self.index), &all));
        }
        for place in places {
            self.give_up(place);
        }
    }

    /// The places of the connections that live and can be replaced; none while one of the device's is known to be dead.
    fn living(&self) -> Option<BTreeSet<usize>> {
        let orphans = self.chronicle.orphans();
        let dead = orphans.values().any(|ends| lives(*ends) == Some(false));
        let stuck = self.stuck.borrow();
        let seen = orphans.into_iter().filter(|(_, ends)| lives(*ends) == Some(true));
        let seen = seen.map(|(place, _)| place).filter(|place| !stuck.contains(place));
        (!dead).then(|| self.alive.borrow().keys().copied().chain(seen).collect())
    }

    /// Ends a connection: by its socket, or, where only the driver has that, by the addresses of its ends.
    fn give_up(&self, place: usize) {
        if let Some(socket) = self.alive.borrow().get(&place) {
            self.chronicle.tell(Event::Renewing { connection: place + 1 });
            cut(socket);
        } else if let Some(Ends::Tcp { local, peer }) = self.chronicle.orphans().get(&place) {
            match destroy(*local, *peer) {
                Ok(()) => self.chronicle.tell(Event::Renewing { connection: place + 1 }),
                Err(error) => {
                    self.stuck.borrow_mut().insert(place);
                    let device = self.index;
                    tracing::warn!(
                        "{device}: connection {} cannot be replaced until it dies ({error}): is there no tcp_diag?",
                        place + 1
                    );
                }
            }
        }
    }

    /// Whoever detaches the device by force need not wait for its server.
    fn let_go(&self) {
        self.alive.borrow().values().for_each(cut);
    }

    fn told_since(&self, begun: Instant, place: usize) {
        let seconds = begun.elapsed().as_secs_f64();
        self.chronicle.tell(Event::Reconnected { connection: place + 1, seconds });
    }
}

/// A socket that is dead by itself is what is wanted, too.
fn cut(socket: &Socket) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}
