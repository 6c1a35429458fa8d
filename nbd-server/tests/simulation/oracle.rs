//! The durability contract as a function: which contents a unit may have, given what was asked
//! and answered.
//!
//! Time is the number of the step. A write is *stable* once it was acknowledged in `writethrough`
//! or with FUA, or once a FLUSH received after its acknowledgement succeeded. A content is allowed
//! after a crash unless a stable write to the unit was received later.

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
    /// When it was answered with success.
    pub(crate) acknowledged: Option<u64>,
}

/// A FLUSH that succeeded.
#[derive(Debug, Clone, Copy)]
struct Flush {
    received: u64,
}

/// Everything that was asked and answered.
pub(crate) struct History {
    mode: Mode,
    initial: u8,
    pub(crate) writes: Vec<Write>,
    flushes: Vec<Flush>,
}

impl History {
    pub(crate) fn new(mode: Mode, initial: u8) -> History {
        History { mode, initial, writes: Vec::new(), flushes: Vec::new() }
    }

    pub(crate) fn flushed(&mut self, received: u64) {
        self.flushes.push(Flush { received });
    }

    /// What a power cut may leave in `unit` now.
    pub(crate) fn after_power_cut(&self, unit: usize) -> BTreeSet<u8> {
        self.not_superseded(unit, |write| self.is_stable(write))
    }

    /// What the page cache may hold now, as a killed server leaves it.
    pub(crate) fn after_kill(&self, unit: usize) -> BTreeSet<u8> {
        match self.mode {
            Mode::EarlyAck => self.after_power_cut(unit),
            _ => self.not_superseded(unit, |write| write.acknowledged.is_some()),
        }
    }

    /// What a READ that was received at `received` and is answered now may return.
    pub(crate) fn readable(&self, unit: usize, received: u64) -> BTreeSet<u8> {
        self.not_superseded(unit, |write| write.acknowledged.is_some_and(|at| at < received))
    }

    /// The only contents a graceful stop may leave: those of the last acknowledged write, or of
    /// one that was received later.
    pub(crate) fn after_stop(&self, unit: usize) -> BTreeSet<u8> {
        match self.mode {
            Mode::Unsafe => self.after_power_cut(unit),
            _ => self.not_superseded(unit, |write| write.acknowledged.is_some()),
        }
    }

    fn is_stable(&self, write: &Write) -> bool {
        let Some(acknowledged) = write.acknowledged else { return false };
        match self.mode {
            Mode::Unsafe => false,
            Mode::Writethrough => true,
            Mode::Writeback | Mode::EarlyAck => {
                write.durable || self.flushes.iter().any(|flush| flush.received > acknowledged)
            }
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
