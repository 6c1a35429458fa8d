//! The durability contract as a function: which contents a unit may have, given what was asked
//! and answered.
//!
//! Time is the number of the step. A write is *stable* once it was acknowledged in `writethrough`
//! or with FUA, or once a FLUSH received after its acknowledgement succeeded. A content is allowed
//! after a crash unless a stable write to the unit was received later. The mode may change: what
//! an acknowledgement promises is decided by the mode in which it was given.

use std::collections::BTreeSet;
use std::ops::Range;

use nbd_server::durability::Mode;

/// A write-class request.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) units: Range<usize>,
    pub(crate) value: u8,
    pub(crate) durable: bool,
    pub(crate) received: u64,
    /// When it was answered with success, and in which mode.
    pub(crate) acknowledged: Option<(u64, Mode)>,
    /// The operator knows that it may be lost.
    pub(crate) forgiven: bool,
}

impl Write {
    /// A write that was just received.
    pub(crate) fn new(units: Range<usize>, value: u8, durable: bool, received: u64) -> Write {
        Write { units, value, durable, received, acknowledged: None, forgiven: false }
    }
}

/// A FLUSH that succeeded.
#[derive(Debug, Clone, Copy)]
struct Flush {
    received: u64,
}

/// Everything that was asked and answered.
pub(crate) struct History {
    initial: u8,
    pub(crate) writes: Vec<Write>,
    flushes: Vec<Flush>,
}

impl History {
    pub(crate) fn new(initial: u8) -> History {
        History { initial, writes: Vec::new(), flushes: Vec::new() }
    }

    /// A FLUSH received at `received` succeeded, or something that promises the same.
    pub(crate) fn flushed(&mut self, received: u64) {
        self.flushes.push(Flush { received });
    }

    /// The operator goes on although what is not stable may be lost.
    pub(crate) fn forgive(&mut self) {
        let lost: Vec<bool> = self.writes.iter().map(|write| !self.is_stable(write)).collect();
        for (write, lost) in self.writes.iter_mut().zip(lost) {
            write.forgiven |= lost && write.acknowledged.is_some();
        }
    }

    /// What a power cut may leave in `unit` now.
    pub(crate) fn after_power_cut(&self, unit: usize) -> BTreeSet<u8> {
        self.not_superseded(unit, |write| self.is_stable(write))
    }

    /// What the page cache may hold now, as a killed server leaves it.
    pub(crate) fn after_kill(&self, unit: usize) -> BTreeSet<u8> {
        self.not_superseded(unit, |write| {
            let early = write.acknowledged.is_some_and(|(_, mode)| mode == Mode::EarlyAck);
            if early { self.is_stable(write) } else { is_promised(write) }
        })
    }

    /// What a READ that was received at `received` and is answered now may return.
    pub(crate) fn readable(&self, unit: usize, received: u64) -> BTreeSet<u8> {
        self.not_superseded(unit, |write| {
            is_promised(write) && write.acknowledged.is_some_and(|(at, _)| at < received)
        })
    }

    /// The only contents a graceful stop may leave: those of the last acknowledged write, or of
    /// one that was received later. The same is left by a crash that loses nothing.
    pub(crate) fn nothing_lost(&self, unit: usize) -> BTreeSet<u8> {
        self.not_superseded(unit, is_promised)
    }

    fn is_stable(&self, write: &Write) -> bool {
        let Some((acknowledged, mode)) = write.acknowledged else { return false };
        let flushed = || self.flushes.iter().any(|flush| flush.received > acknowledged);
        match mode {
            _ if write.forgiven => false,
            Mode::Writethrough => true,
            Mode::Writeback | Mode::EarlyAck => write.durable || flushed(),
            Mode::Unsafe => flushed(),
        }
    }

    /// Every content of `unit` but those older than some write that `holds` picks.
    fn not_superseded(&self, unit: usize, holds: impl Fn(&Write) -> bool) -> BTreeSet<u8> {
        let writes = self.writes.iter().filter(|write| write.units.contains(&unit));
        let oldest = writes.clone().filter(|write| holds(write)).map(|write| write.received).max();
        let contents = writes.filter(|write| Some(write.received) >= oldest).map(|write| write.value);
        contents.chain(oldest.is_none().then_some(self.initial)).collect()
    }
}

/// Whether it was acknowledged, and nobody has said since that it may be lost.
fn is_promised(write: &Write) -> bool {
    write.acknowledged.is_some() && !write.forgiven
}
