//! A disk with a volatile cache, whose operations can be held and made to fail.
//!
//! Per unit of 512 bytes it knows every content that a power cut could leave: any of the contents
//! written since the last sync that covered them, or what was stable before. A sync covers what
//! was in the cache when it began. One that fails drops what it was to write, as Linux does: no
//! later sync makes it stable, though readers still see it.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::command::{Fua, Zeroing};
use futures::channel::oneshot;
use nbd_server::buf::IoBuf;
use nbd_server::device::{Backend, Shape, sync_failure};

/// Bytes that a power cut leaves whole.
pub(crate) const UNIT: usize = 512;

/// Operations in one life; no life that makes sense needs more.
const OPERATIONS_MAX: usize = 10_000;

/// What a disk was asked to do; ranges as first byte and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read.
    Read(u64, usize),
    /// Write, durable or not.
    Write(u64, usize, Fua),
    /// Zero.
    Zero(u64, u64),
    /// Trim.
    Trim(u64, u64),
    /// Sync everything.
    Sync,
}

/// Chooses operations.
pub(crate) type Pick = fn(&Op) -> bool;

/// What goes wrong with an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The host says this error.
    Errno(i32),
    /// The backend has a bug.
    Panic,
}

/// A disk; clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

struct State {
    cache: Vec<u8>,
    units: Vec<Unit>,
    /// Contents written so far, over all units.
    written: u64,
    /// Operations in the order in which they began.
    log: Vec<Op>,
    hold: Pick,
    held: VecDeque<(Op, oneshot::Sender<Option<Fault>>)>,
    fail: Option<(Pick, Fault)>,
}

/// What a power cut could leave in a unit.
#[derive(Clone)]
struct Unit {
    /// One of these is on the medium and no sync will change that.
    fixed: BTreeSet<u8>,
    /// Written since, in order, with their place among all writes.
    volatile: Vec<(u64, u8)>,
}

impl Disk {
    /// A disk of `size` bytes, all of them `initial`.
    pub(crate) fn new(size: usize, initial: u8) -> Disk {
        let unit = Unit { fixed: BTreeSet::from([initial]), volatile: Vec::new() };
        Disk(Arc::new(Mutex::new(State {
            cache: vec![initial; size],
            units: vec![unit; size / UNIT],
            written: 0,
            log: Vec::new(),
            hold: |_| false,
            held: VecDeque::new(),
            fail: None,
        })))
    }

    /// From now on, operations that `hold` picks wait until they are released.
    pub(crate) fn hold(&self, hold: Pick) {
        self.lock().hold = hold;
    }

    /// From now on, operations that `pick` picks go wrong and have no effect.
    pub(crate) fn fail(&self, pick: Pick, fault: Fault) {
        self.lock().fail = Some((pick, fault));
    }

    /// The disk is well again.
    pub(crate) fn heal(&self) {
        self.lock().fail = None;
    }

    /// Lets the held operation number `index` go on; returns what it is.
    pub(crate) fn release(&self, index: usize) -> Op {
        self.release_with(index, None)
    }

    /// Lets the held operation number `index` go on, or go wrong; returns what it is.
    pub(crate) fn release_with(&self, index: usize, fault: Option<Fault>) -> Op {
        let (op, sender) = self.lock().held.remove(index).expect("an operation is held");
        sender.send(fault).expect("a request that was received runs to completion");
        op
    }

    /// The operations that are held.
    pub(crate) fn held(&self) -> Vec<Op> {
        self.lock().held.iter().map(|(op, _)| *op).collect()
    }

    /// Everything the disk was asked to do, in the order in which it began.
    pub(crate) fn log(&self) -> Vec<Op> {
        self.lock().log.clone()
    }

    /// Syncs that began so far.
    pub(crate) fn syncs(&self) -> usize {
        self.log().iter().filter(|op| **op == Op::Sync).count()
    }

    /// The byte at `at`, as readers see it and as it is at least stable.
    pub(crate) fn byte(&self, at: usize) -> (u8, u8) {
        let state = self.lock();
        let fixed = &state.units[at / UNIT].fixed;
        (state.cache[at], *fixed.first().expect("something is on the medium"))
    }

    /// What a unit holds for readers, and everything a power cut could leave in it.
    pub(crate) fn unit(&self, unit: usize) -> (u8, BTreeSet<u8>) {
        let state = self.lock();
        let Unit { fixed, volatile } = &state.units[unit];
        let possible = fixed.iter().copied().chain(volatile.iter().map(|(_, value)| *value)).collect();
        (state.cache[unit * UNIT], possible)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation: logs it, holds it, lets it fail.
    async fn begin(&self, op: Op) -> io::Result<()> {
        let gate = {
            let mut state = self.lock();
            state.log.push(op);
            assert!(state.log.len() < OPERATIONS_MAX, "the server never stops asking");
            (state.hold)(&op).then(|| {
                let (sender, receiver) = oneshot::channel();
                state.held.push_back((op, sender));
                receiver
            })
        };
        let mut fault = None;
        if let Some(gate) = gate {
            fault = gate.await.expect("the disk outlives its operations");
        }
        let always = self.lock().fail.filter(|(pick, _)| pick(&op)).map(|(_, fault)| fault);
        match fault.or(always) {
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Panic) => panic!("planted"),
            None => Ok(()),
        }
    }

    fn zeroed(&self, at: u64, len: u64) {
        let range = place(at)..place(at + len);
        let mut state = self.lock();
        state.cache[range.clone()].fill(0);
        state.wrote(range, 0);
    }
}

impl State {
    /// A content has reached the cache.
    fn wrote(&mut self, range: Range<usize>, value: u8) {
        self.written += 1;
        for unit in &mut self.units[range.start / UNIT..range.end.div_ceil(UNIT)] {
            unit.volatile.push((self.written, value));
        }
    }
}

impl Unit {
    /// A sync that began when `upto` contents had been written has ended.
    fn synced(&mut self, upto: u64) {
        if let Some((_, value)) = self.volatile.iter().rfind(|(number, _)| *number <= upto) {
            self.fixed = BTreeSet::from([*value]);
        }
        self.volatile.retain(|(number, _)| *number > upto);
    }

    /// A sync that began when `upto` contents had been written has failed.
    fn dropped(&mut self, upto: u64) {
        let lost = self.volatile.iter().filter(|(number, _)| *number <= upto);
        self.fixed.extend(lost.map(|(_, value)| *value));
        self.volatile.retain(|(number, _)| *number > upto);
    }
}

impl Backend for Disk {
    fn shape(&self) -> Shape {
        Shape::capable(self.lock().cache.len() as u64)
    }

    async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        // What is read is what was there when the read began: the answer may be long in coming.
        let len = buf.len();
        buf.copy_from_slice(&self.lock().cache[place(at)..][..len]);
        self.begin(Op::Read(at, len)).await?;
        Ok(buf)
    }

    async fn write(&self, at: u64, data: IoBuf, fua: Fua) -> io::Result<()> {
        let begun = self.begin(Op::Write(at, data.len(), fua)).await;
        if fua == Fua::No {
            begun?;
            let mut state = self.lock();
            state.cache[place(at)..][..data.len()].copy_from_slice(&data);
            // A merged write carries several contents, unit by unit.
            for (number, unit) in data.chunks(UNIT).enumerate() {
                let start = place(at) + number * UNIT;
                state.wrote(start..start + unit.len(), unit[0]);
            }
            return Ok(());
        }
        // A durable write that goes wrong does so after it has reached the cache.
        let mut state = self.lock();
        let range = place(at)..place(at) + data.len();
        state.cache[range.clone()].copy_from_slice(&data);
        state.wrote(range.clone(), data[0]);
        let upto = state.written;
        for unit in &mut state.units[range.start / UNIT..range.end.div_ceil(UNIT)] {
            match begun {
                Ok(()) => unit.synced(upto),
                Err(_) => unit.dropped(upto),
            }
        }
        begun.map_err(sync_failure)
    }

    async fn flush(&self) -> io::Result<()> {
        let upto = self.lock().written;
        let begun = self.begin(Op::Sync).await;
        for unit in &mut self.lock().units {
            match begun {
                Ok(()) => unit.synced(upto),
                Err(_) => unit.dropped(upto),
            }
        }
        begun
    }

    async fn zero(&self, at: u64, len: u64, _how: Zeroing) -> io::Result<()> {
        self.begin(Op::Zero(at, len)).await?;
        self.zeroed(at, len);
        Ok(())
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        self.begin(Op::Trim(at, len)).await?;
        self.zeroed(at, len);
        Ok(())
    }
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("the disk is small")
}
