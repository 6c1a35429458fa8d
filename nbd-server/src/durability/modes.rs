//! The four modes over one storage, of which one is in force; which one can change while clients
//! are connected.
//!
//! All modes share one poison and one account of what is unstable, and the early-ack cache is
//! there in all of them, empty in the others. A change first makes everything stable, most of it
//! while requests go on, then holds new requests at the [gate](super::gate) for as long as the
//! rest takes.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::command::{Fua, Zeroing};
use futures::FutureExt;

use super::careless::Careless;
use super::early::{Early, EarlyLimits};
use super::epoch::{Held, Ledger};
use super::gate::Gate;
use super::stable::Stable;
use super::syncs::Syncs;
use super::{Mode, gate};
use crate::buf::IoBuf;
use crate::device::{Background, Clock, Device, Extent, Health, Io, Layer, Loan, layered};

/// How long an export must be quiet and stable before that is put on record: long enough that a
/// busy file system does not pay for it.
const REST_AFTER: Duration = Duration::from_secs(1);

/// What keeps the promises of an export.
pub struct Durability {
    gate: Gate,
    syncs: Arc<Syncs>,
    writethrough: Arc<dyn Device>,
    writeback: Arc<dyn Device>,
    early_ack: Arc<dyn Device>,
    careless: Arc<dyn Device>,
    /// The layer within `early_ack`.
    early: Arc<Early>,
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
    /// Keeps the promises of `mode` over `storage`.
    #[must_use]
    pub fn over(
        storage: &Arc<dyn Device>,
        mode: Mode,
        limits: EarlyLimits,
        ledger: Ledger,
    ) -> Arc<Durability> {
        let syncs = Arc::new(Syncs::new());
        let stable =
            |every_write| layered(Box::new(Stable::new(every_write, syncs.clone())), storage.clone());
        let writeback = stable(Fua::No);
        let early = Arc::new(Early::new(limits, syncs.clone()));
        Arc::new(Durability {
            gate: Gate::new(mode, ledger),
            writethrough: stable(Fua::Yes),
            early_ack: layered(Box::new(early.clone()), writeback.clone()),
            careless: layered(Box::new(Careless::new(syncs.clone())), storage.clone()),
            writeback,
            early,
            syncs,
        })
    }

    /// The mode in force.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.gate.mode()
    }

    /// The epoch: see [`super::epoch`].
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.gate.epoch(self.syncs.is_poisoned())
    }

    /// Puts another mode in force. Everything acknowledged before is stable by then.
    ///
    /// # Errors
    /// The old mode stays in force.
    pub async fn change(&self, to: Mode) -> Result<(), ChangeError> {
        let mode = self.mode();
        let unstable = |error| ChangeError::Unstable { mode, error };
        self.settle().await.map_err(unstable)?;
        if mode == to {
            return Ok(());
        }
        let closed = self.gate.close().await.map_err(|gate::AlreadyClosed| ChangeError::Underway)?;
        self.settle().await.map_err(unstable)?;
        self.rest().await.map_err(unstable)?;
        closed.open_in(to);
        Ok(())
    }

    /// Makes everything that was acknowledged before now stable, in every mode.
    pub async fn settle(&self) -> io::Result<()> {
        let settled = self.early_ack.flush().await;
        self.note_loss(&settled).await;
        settled
    }

    /// Gives everything that was acknowledged before now to the host, without making it stable.
    pub async fn write_back(&self) -> io::Result<()> {
        self.early.drain_all().await
    }

    /// Makes everything stable and puts it on record, for the next server.
    pub async fn close(&self) -> io::Result<()> {
        self.settle().await?;
        self.rest().await
    }

    /// The operator has seen that acknowledged data may be lost, and goes on. Returns whether it
    /// may have been. What could not be stored and is still here is tried again.
    pub async fn forgive(&self) -> bool {
        if !self.syncs.is_poisoned() {
            return false;
        }
        self.gate.note_loss().await;
        self.gate.forget_loss();
        self.syncs.forgive();
        true
    }

    /// Runs a request in the mode in force.
    async fn run<'a>(
        &'a self,
        leaves: impl Fn(Mode) -> Held,
        work: impl FnOnce(&'a dyn Device) -> Io<'a, ()>,
    ) -> io::Result<()> {
        let pass = self.gate.enter(leaves).await?;
        let done = work(self.in_mode(pass.mode())).await;
        drop(pass);
        self.note_loss(&done).await;
        done
    }

    fn in_mode(&self, mode: Mode) -> &dyn Device {
        match mode {
            Mode::Writethrough => &*self.writethrough,
            Mode::Writeback => &*self.writeback,
            Mode::EarlyAck => &*self.early_ack,
            Mode::Unsafe => &*self.careless,
        }
    }

    /// A poison that is told has an epoch of its own.
    async fn note_loss(&self, told: &io::Result<()>) {
        if told.is_err() && self.syncs.is_poisoned() {
            self.gate.note_loss().await;
        }
    }

    /// Puts on record that nothing is unstable, if that is so.
    async fn rest(&self) -> io::Result<()> {
        let is_settled = || self.early_ack.health().dirty_bytes == 0 && self.syncs.are_done();
        self.gate.rest(is_settled).await
    }

    /// Rests whenever a while has passed without requests.
    async fn rest_when_quiet(&self, clock: Rc<dyn Clock>) {
        loop {
            self.gate.until_unstable().await;
            let passed = self.gate.passed();
            clock.sleep(REST_AFTER).await;
            if self.gate.passed() == passed
                && let Err(error) = self.rest().await
            {
                tracing::warn!(%error, "cannot put on record that everything is stable");
            }
        }
    }
}

/// Where the data of a write-class request may be once it was acknowledged.
fn leaves(fua: Fua) -> impl Fn(Mode) -> Held {
    move |mode| match (mode, fua) {
        (Mode::Writethrough, _) | (Mode::Writeback | Mode::EarlyAck, Fua::Yes) => Held::Nowhere,
        (Mode::Writeback, Fua::No) | (Mode::Unsafe, _) => Held::Kernel,
        (Mode::EarlyAck, Fua::No) => Held::Server,
    }
}

impl Layer for Arc<Durability> {
    fn read<'a>(&'a self, _: &'a dyn Device, at: u64, buf: IoBuf) -> Io<'a, IoBuf> {
        // No mode leaves anything for another one to read, so reads need not pass the gate.
        self.in_mode(self.mode()).read(at, buf)
    }

    fn write<'a>(&'a self, _: &'a dyn Device, at: u64, data: IoBuf, fua: Fua) -> Io<'a, ()> {
        Box::pin(self.run(leaves(fua), move |device| device.write(at, data, fua)))
    }

    fn flush<'a>(&'a self, _: &'a dyn Device) -> Io<'a, ()> {
        Box::pin(self.run(|_| Held::Nowhere, |device| device.flush()))
    }

    fn zero<'a>(&'a self, _: &'a dyn Device, at: u64, len: u64, how: Zeroing, fua: Fua) -> Io<'a, ()> {
        Box::pin(self.run(leaves(fua), move |device| device.zero(at, len, how, fua)))
    }

    fn trim<'a>(&'a self, _: &'a dyn Device, at: u64, len: u64, fua: Fua) -> Io<'a, ()> {
        Box::pin(self.run(leaves(fua), move |device| device.trim(at, len, fua)))
    }

    fn extents<'a>(&'a self, _: &'a dyn Device, at: u64, len: u64) -> Io<'a, Vec<Extent>> {
        self.in_mode(self.mode()).extents(at, len)
    }

    fn health(&self, _: Health) -> Health {
        // The stack of this mode sees the one cache and the one poison.
        self.early_ack.health()
    }

    fn background<'a>(&'a self, _: &'a dyn Device, clock: Rc<dyn Clock>) -> Background<'a> {
        let writer = self.early_ack.background(clock.clone());
        Box::pin(futures::future::join(writer, self.rest_when_quiet(clock)).map(|((), ())| ()))
    }

    fn lend(&self, _: &dyn Device, at: u64, len: usize) -> Option<Loan> {
        self.in_mode(self.mode()).lend(at, len)
    }
}
