//! What an acknowledgement promises: the one layer between sessions and storage.
//!
//! | mode | a plain write is acknowledged when | FLUSH and FUA |
//! |---|---|---|
//! | `writethrough` | it is on stable storage | nothing is left to do |
//! | `writeback` | the kernel has it (page cache) | make it stable |
//! | `early-ack` | it was received and copied to a bounded cache | empty the cache, then as above |
//! | `unsafe` | the kernel has it | are acknowledged and ignored |
//!
//! A request passes these, one file each; the rules of `docs/durability.md` are cited where they are kept:
//!
//! | part | concern |
//! |---|---|
//! | `ordering` | overlapping writes in the order of receipt; nothing of ended connections behind new ones |
//! | `mode_gate` | the mode in which the request runs |
//! | `dirty_marker`, [`epoch`] | what a crash could lose is on record before it is acknowledged |
//! | `early_ack`, `write_cache` | writes that are acknowledged before the storage has them |
//! | `group_commit` | syncs that many requests share; poison |

mod dirty_marker;
mod early_ack;
pub mod epoch;
mod group_commit;
mod mode;
mod mode_gate;
mod ordering;
mod write_cache;

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::command::{Fua, Zeroing};
use futures::FutureExt;

use crate::buf::IoBuf;
use crate::device::{Device, Extent, Io, Shape, is_sync_failure, overlaid};
use dirty_marker::{DirtyMarker, End};
use early_ack::EarlyAck;
use epoch::{Epoch, Unstable};
use group_commit::{AtOnce, GroupCommit, Target};
use mode_gate::{ModeGate, Pass};
use ordering::Ordering;

pub use early_ack::EarlyLimits;
pub use mode::Mode;
pub use ordering::{Client, Receipt};

/// How long an export must be quiet before its dirty marker is removed, and between attempts to store
/// a record that could not be stored. A busy export stores its marker once; one that wakes up now and
/// then stores two records per pause of this length.
const QUIET_AFTER: Duration = Duration::from_secs(5);

/// Time, as the background work of an export sees it: the seam through which a simulation controls it.
pub trait Clock {
    /// Resolves after `duration`.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// The state of an export's promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Bytes acknowledged and not yet given to the host.
    pub dirty_bytes: usize,
    /// Bytes acknowledged and not known to be stable, those included; what was written twice
    /// counts twice.
    pub unstable_bytes: u64,
    /// Why every FLUSH and write fails, if they do.
    pub poison: Option<String>,
    /// Whether the epoch's record can be stored. While it cannot, writes are made durable one by one.
    pub record_is_stored: bool,
}

/// What the success of a write-class request promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// The server has the data.
    Received,
    /// The host has the data.
    Written,
    /// The data survives everything but the loss of the medium.
    Stable,
}

impl Promise {
    /// The promise of a request in a mode. `cacheable` says whether it may be acknowledged early.
    fn of(mode: Mode, fua: Fua, cacheable: bool) -> Promise {
        match (mode, fua) {
            (Mode::Writethrough, _) | (Mode::Writeback | Mode::EarlyAck, Fua::Yes) => Promise::Stable,
            (Mode::EarlyAck, Fua::No) if cacheable => Promise::Received,
            (Mode::Writeback | Mode::EarlyAck, Fua::No) | (Mode::Unsafe, _) => Promise::Written,
        }
    }

    /// Where the data may be when no more than this is promised.
    fn unstable(self) -> Unstable {
        match self {
            Promise::Received => Unstable::ServerMemory,
            Promise::Written => Unstable::HostCache,
            Promise::Stable => Unstable::None,
        }
    }
}

/// Keeps the promises of an export, in the mode in force, which can change while clients are
/// connected.
pub struct Durability {
    /// The export's, for the log.
    name: String,
    storage: Arc<dyn Device>,
    ordering: Arc<Ordering>,
    gate: ModeGate,
    marker: DirtyMarker,
    early: EarlyAck,
    commit: GroupCommit,
    /// Held by the operator who clears the poison.
    clearing: tokio::sync::Mutex<()>,
}

/// Why the mode was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// One change at a time.
    #[error("the mode is being changed already")]
    Underway,
    /// What the old mode acknowledged cannot be made stable.
    #[error("the mode stays {mode}: what it acknowledged cannot be made stable: {error}")]
    Unstable {
        /// The old mode.
        mode: Mode,
        /// Why.
        error: io::Error,
    },
}

impl Durability {
    /// Keeps the promises of `mode` over `storage`, for the export called `name`.
    #[must_use]
    pub fn over(
        name: &str,
        storage: Arc<dyn Device>,
        mode: Mode,
        limits: EarlyLimits,
        epoch: Epoch,
    ) -> Durability {
        let commit = GroupCommit::new(storage.shape().syncs, epoch.record.poison.clone());
        Durability {
            name: name.to_owned(),
            storage,
            ordering: Arc::default(),
            gate: ModeGate::new(mode),
            marker: DirtyMarker::new(epoch, commit.losses()),
            early: EarlyAck::new(limits),
            commit,
            clearing: tokio::sync::Mutex::default(),
        }
    }

    /// The storage, as clients see it.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.storage.shape()
    }

    /// The mode in force.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.gate.mode()
    }

    /// The epoch: see [`epoch`].
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.marker.epoch(self.commit.losses())
    }

    /// The state of its promises.
    #[must_use]
    pub fn health(&self) -> Health {
        let dirty_bytes = self.early.payload_bytes();
        Health {
            dirty_bytes,
            unstable_bytes: self.commit.unstable_bytes() + dirty_bytes as u64,
            poison: self.commit.check().err().map(|error| error.to_string()),
            record_is_stored: !self.marker.is_failing(),
        }
    }

    /// A new connection, which sees nothing before what ended connections left under way has taken
    /// effect.
    #[must_use]
    pub fn connect(&self) -> Client {
        self.ordering.connect()
    }

    /// A connection has ended; requests that it left under way go on.
    pub fn disconnect(&self, client: &Client) {
        client.end();
    }

    /// Receives a write-class request about a range: the call decides its place in the order.
    #[must_use]
    pub fn receive_write(&self, client: &Client, range: Range<u64>) -> Receipt {
        client.receive_write(range)
    }

    /// Receives a FLUSH.
    #[must_use]
    pub fn receive_flush(&self, client: &Client) -> Receipt {
        client.receive(self.commit.target())
    }

    /// Receives any other request.
    #[must_use]
    pub fn receive(&self, client: &Client) -> Receipt {
        client.receive(Target::default())
    }

    /// Fills the buffer from byte `at`.
    pub fn read<'a>(&'a self, receipt: &'a Receipt, at: u64, buf: IoBuf) -> Io<'a, IoBuf> {
        // No mode leaves anything for another one to read, so reads need not pass the gate.
        if self.mode() != Mode::EarlyAck && !receipt.must_wait() {
            return self.storage.read(at, buf);
        }
        Box::pin(async move {
            receipt.turn().await;
            let overlay = self.early.overlay(&(at..at + buf.len() as u64));
            let mut buf = if overlay.is_all_of(buf.len()) { buf } else { self.storage.read(at, buf).await? };
            overlay.apply(at, &mut buf);
            Ok(buf)
        })
    }

    /// Describes what the range is made of, from its beginning; see [`Device::extents`].
    pub fn extents<'a>(&'a self, receipt: &'a Receipt, at: u64, len: u64) -> Io<'a, Vec<Extent>> {
        Box::pin(async move {
            receipt.turn().await;
            let overlay = self.early.overlay(&(at..at + len)).ranges();
            Ok(overlaid(at, &self.storage.extents(at, len).await?, overlay))
        })
    }

    /// Reads the range ahead.
    pub fn cache(&self, at: u64, len: u64) -> Io<'_, ()> {
        self.storage.cache(at, len)
    }

    /// Stores the data at byte `at`.
    pub fn write<'a>(&'a self, receipt: &'a Receipt, at: u64, data: IoBuf, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            receipt.turn().await;
            let (pass, promise) = self.enter(fua, self.early.takes(data.len())).await;
            let range = at..at + data.len() as u64;
            let done = match promise {
                Promise::Received => self.early.insert(at, data, &self.commit).await,
                Promise::Written => self.store(&pass, promise, range, || self.storage.write(at, data)).await,
                Promise::Stable => self.write_stable(&pass, at, data).await,
            };
            self.leave(pass, done).await
        })
    }

    /// Makes `len` bytes read as zero; see [`Device::zero`].
    pub fn zero<'a>(&'a self, receipt: &'a Receipt, at: u64, len: u64, how: Zeroing, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            receipt.turn().await;
            let (pass, promise) = self.enter(fua, false).await;
            let done = self.store(&pass, promise, at..at + len, || self.storage.zero(at, len, how)).await;
            self.leave(pass, done).await
        })
    }

    /// Gives space back where it can.
    pub fn trim<'a>(&'a self, receipt: &'a Receipt, at: u64, len: u64, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            receipt.turn().await;
            let (pass, promise) = self.enter(fua, false).await;
            let done = self.store(&pass, promise, at..at + len, || self.storage.trim(at, len)).await;
            self.leave(pass, done).await
        })
    }

    /// Makes every write that was acknowledged before the FLUSH was received stable.
    pub fn flush<'a>(&'a self, receipt: &'a Receipt) -> Io<'a, ()> {
        Box::pin(async move {
            receipt.turn().await;
            let pass = self.gate.enter().await;
            let done = match pass.mode() {
                Mode::Unsafe => Ok(()),
                mode => self.sync(receipt, mode).await,
            };
            self.leave(pass, done).await
        })
    }

    async fn sync(&self, receipt: &Receipt, mode: Mode) -> io::Result<()> {
        if mode != Mode::EarlyAck {
            return self.commit.reach(receipt.target, AtOnce::One, &*self.storage).await;
        }
        // What leaves the cache is written, and counted, after the FLUSH was received.
        self.early.drain_all(&self.commit).await?;
        let target = receipt.target.including(self.commit.target());
        self.commit.reach(target, AtOnce::One, &*self.storage).await
    }

    /// Lets a write-class request in, and decides what its success promises.
    async fn enter(&self, fua: Fua, cacheable: bool) -> (Pass<'_>, Promise) {
        let pass = self.gate.enter().await;
        let promise = Promise::of(pass.mode(), fua, cacheable);
        if self.marker.is_marked(promise.unstable()) {
            return (pass, promise);
        }
        // Boxed, as it is rare and would make every request's future longer.
        let is_marked = Box::pin(self.mark(promise.unstable())).await;
        // With nothing on record about it, nothing may be left unstable.
        (pass, if is_marked { promise } else { Promise::Stable })
    }

    /// Stores that data may be unstable there; returns whether that is stored.
    async fn mark(&self, unstable: Unstable) -> bool {
        match self.marker.mark(unstable).await {
            Ok(is_marked) => is_marked,
            Err(error) => {
                self.record_failed(&error).await;
                false
            }
        }
    }

    /// Makes way for a request that goes to the storage: nothing in the cache overlaps it, and the
    /// export is not poisoned.
    async fn prepare(&self, pass: &Pass<'_>, range: Range<u64>) -> io::Result<()> {
        match pass.mode() {
            Mode::Unsafe => Ok(()),
            Mode::EarlyAck => self.early.drain(range, &self.commit).await,
            Mode::Writethrough | Mode::Writeback => self.commit.check(),
        }
    }

    /// Changes the storage by `work`, and makes the change stable if that is promised.
    async fn store<'a>(
        &'a self,
        pass: &Pass<'_>,
        promise: Promise,
        range: Range<u64>,
        work: impl FnOnce() -> Io<'a, ()>,
    ) -> io::Result<()> {
        let bytes = range.end - range.start;
        self.prepare(pass, range).await?;
        let begun = self.commit.generation();
        let stored = work().await;
        let target = self.commit.wrote(bytes);
        stored?;
        if pass.mode() != Mode::Unsafe {
            // A sync that failed meanwhile may have lost it.
            self.commit.check_since(begun)?;
        }
        match promise {
            Promise::Stable => self.commit.reach(target, AtOnce::Several, &*self.storage).await,
            Promise::Written | Promise::Received => Ok(()),
        }
    }

    /// Writes and makes it stable: in one go where no sync runs that it could share.
    async fn write_stable(&self, pass: &Pass<'_>, at: u64, data: IoBuf) -> io::Result<()> {
        let range = at..at + data.len() as u64;
        self.prepare(pass, range.clone()).await?;
        let begun = self.commit.generation();
        let Some(lead) = self.commit.begin_alone()? else {
            return self.store(pass, Promise::Stable, range, || self.storage.write(at, data)).await;
        };
        let done = self.storage.write_and_flush(at, data, lead.sync).await;
        // One that succeeded need not be counted: nobody has to make it stable any more.
        if done.is_err() {
            self.commit.wrote(range.end - range.start);
        }
        match &done {
            Err(error) if !is_sync_failure(error) => lead.cancel(),
            done => lead.finish(done.as_ref().copied()),
        }
        done?;
        self.commit.check_since(begun)
    }

    /// Ends a request; a failure that poisons the export gets its epoch before it is told.
    async fn leave(&self, pass: Pass<'_>, done: io::Result<()>) -> io::Result<()> {
        drop(pass);
        if done.is_err() {
            Box::pin(self.note_loss()).await;
        }
        done
    }

    /// Gives the loss that poisons the export, if one does, an epoch of its own, and stores it.
    async fn note_loss(&self) {
        // The record's own sync may tell of the same loss once more.
        for _ in 0..2 {
            let Some((cause, losses)) = self.commit.poison_cause() else { return };
            match self.marker.note_loss(losses, cause).await {
                Ok(()) => return,
                Err(error) if is_sync_failure(&error) => self.commit.poison(&error),
                Err(error) => return self.warn_of_record(&error),
            }
        }
    }

    /// The epoch's record could not be stored. If that was because the storage itself could not be
    /// written back, acknowledged data may be lost.
    async fn record_failed(&self, error: &io::Error) {
        if is_sync_failure(error) {
            self.commit.poison(error);
            self.note_loss().await;
        } else {
            self.warn_of_record(error);
        }
    }

    fn warn_of_record(&self, error: &io::Error) {
        tracing::warn!(
            export = self.name,
            %error,
            "the epoch's record cannot be stored: until it can, every write is made durable before its reply"
        );
    }

    /// Puts another mode in force. Everything acknowledged before is stable by then.
    ///
    /// # Errors
    /// The old mode stays in force.
    pub async fn change(&self, to: Mode) -> Result<(), ChangeError> {
        let mode = self.mode();
        let unstable = |error| ChangeError::Unstable { mode, error };
        self.sync_all().await.map_err(unstable)?;
        if mode == to {
            return Ok(());
        }
        let closed = self.gate.close().await.map_err(|mode_gate::AlreadyClosed| ChangeError::Underway)?;
        self.sync_all().await.map_err(unstable)?;
        if let Err(error) = self.marker.set_mode(to).await {
            self.record_failed(&error).await;
        }
        self.commit.check().map_err(unstable)?;
        closed.open_in(to);
        Ok(())
    }

    /// Makes everything that was acknowledged before now stable, in every mode.
    pub async fn sync_all(&self) -> io::Result<()> {
        let synced = self.drain_and_sync().await;
        if synced.is_err() {
            self.note_loss().await;
        }
        synced
    }

    async fn drain_and_sync(&self) -> io::Result<()> {
        self.early.drain_all(&self.commit).await?;
        self.commit.reach(self.commit.target(), AtOnce::One, &*self.storage).await
    }

    /// Gives everything that was acknowledged before now to the host, without making it stable.
    pub async fn write_back(&self) -> io::Result<()> {
        self.early.drain_all(&self.commit).await
    }

    /// Makes everything stable at the end and stores that it is.
    pub async fn close(&self) -> io::Result<()> {
        self.sync_all().await?;
        let stored = self.unmark(End::Clean).await;
        if let Err(error) = &stored {
            self.record_failed(error).await;
        }
        stored
    }

    /// The operator has seen that acknowledged data may be lost, and goes on. Returns whether it
    /// may have been. What could not be written and is still in the cache is tried again.
    pub async fn clear_poison(&self) -> bool {
        let seen = self.commit.losses();
        // One at a time: what another one is about to ignore must not be the next loss.
        let _alone = self.clearing.lock().await;
        let Some((cause, losses)) = self.commit.poison_cause() else { return false };
        if losses != seen {
            return false;
        }
        self.note_loss().await;
        self.commit.tell_old_errors(&*self.storage).await;
        // Before anything can fail that this loss is not about.
        self.marker.mark_instance();
        self.commit.clear_poison();
        tracing::warn!(
            export = self.name,
            cause,
            "the operator clears the poison: FLUSH and writes work again"
        );
        if let Err(error) = self.marker.clear_poison(losses).await {
            self.record_failed(&error).await;
        }
        true
    }

    /// The background work of the export, for as long as it lives, on one worker.
    pub async fn background(&self, clock: Rc<dyn Clock>) {
        let writer = self.early.write_back(&*self.storage, &self.commit, &*clock).map(|never| match never {});
        let work = futures::future::join3(writer, self.maintain_record(&*clock), self.tell_losses());
        let ((), (), ()) = work.await;
    }

    /// Logs every loss, and gives it an epoch even if no request meets it.
    async fn tell_losses(&self) {
        let mut told = 0;
        loop {
            self.commit.poisoned().await;
            if let Some((cause, losses)) = self.commit.poison_cause()
                && losses != told
            {
                told = losses;
                tracing::error!(
                    export = self.name,
                    cause,
                    "acknowledged data may be lost: every FLUSH and write fails from now on"
                );
                self.note_loss().await;
            }
            self.commit.healthy().await;
        }
    }

    /// Stores what could not be stored before, and removes the dirty marker of a quiet export.
    async fn maintain_record(&self, clock: &dyn Clock) {
        loop {
            self.marker.pending().await;
            let entered = self.gate.entered();
            clock.sleep(QUIET_AFTER).await;
            if self.marker.is_failing() {
                match self.marker.retry().await {
                    Ok(()) => tracing::info!(export = self.name, "the epoch's record is stored again"),
                    Err(error) => self.record_failed(&error).await,
                }
            } else if self.gate.entered() == entered
                && let Err(error) = self.unmark(End::Open).await
            {
                self.record_failed(&error).await;
            }
        }
    }

    /// Stores that nothing is unstable, if that is so.
    async fn unmark(&self, end: End) -> io::Result<()> {
        let is_true = || self.gate.is_empty() && self.early.is_empty() && self.commit.is_synced();
        self.marker.unmark(end, is_true).await
    }
}
