//! A disk behind a simulated kernel: a page cache, descriptions that are told of errors once, and
//! operations that can be held and made to fail.
//!
//! Per unit of 512 bytes it knows every content that a power cut could leave: any of the contents
//! written since the last write-back that covered them, or what was stable before.
//!
//! Errors are told as Linux tells them (`lib/errseq.c`, `mm/filemap.c`): a failed write-back marks
//! the pages clean, whatever it was to write is lost, and the error is told once to each open file
//! description, by whichever sync on it asks first. A sync that finds nothing dirty succeeds even
//! though the pages it was asked about are lost. The kernel may write back at any time.
//!
//! Where [`Disk::split`] says so, an operation is held twice: before the kernel carries it out, and
//! before its result reaches the server. Between the two the kernel has told its only report.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::command::Zeroing;
use futures::channel::oneshot;
use nbd_server::buf::IoBuf;
use nbd_server::device::{Backend, Shape};

/// Bytes that a power cut leaves whole.
pub(crate) const UNIT: usize = 512;

/// Operations in one life; no life that makes sense needs more.
const OPERATIONS_MAX: usize = 10_000;

/// An operation of the disk; ranges as first byte and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read.
    Read(u64, usize),
    /// Write into the page cache.
    Write(u64, usize),
    /// Zero.
    Zero(u64, u64),
    /// Trim.
    Trim(u64, u64),
    /// Sync everything.
    Sync,
    /// Store the epoch's record and sync it.
    Persist,
    /// Hand the result of an operation to the server.
    Deliver,
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

/// Syncs that may run at once, each through a description of its own.
pub(crate) const SYNCS: usize = 2;

/// A disk; clones are the same disk, through the same open file descriptions.
#[derive(Clone)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    descriptions: [usize; SYNCS],
}

struct State {
    cache: Vec<u8>,
    units: Vec<Unit>,
    /// Contents written so far, over all units.
    written: u64,
    /// Write-back errors so far, as `errseq_t` counts them.
    errors: u64,
    /// Whether somebody was told of the last one.
    seen: bool,
    /// Of each open file description: the errors that it was told of.
    cursors: Vec<u64>,
    /// Errors of syncs that have reached the server.
    delivered: u64,
    /// Whether the inode in memory is marked; a server that is told of an error removes the mark.
    marked: bool,
    /// Operations in the order in which they began.
    log: Vec<Op>,
    hold: Pick,
    split: bool,
    held: VecDeque<(Op, oneshot::Sender<Option<Fault>>)>,
    fail: Option<(Pick, Fault)>,
}

/// What a power cut could leave in a unit.
#[derive(Clone)]
struct Unit {
    /// One of these is on the medium and no write-back will change that.
    fixed: BTreeSet<u8>,
    /// Written since, in order, with their place among all writes.
    volatile: Vec<(u64, u8)>,
}

impl Disk {
    /// A disk of `size` bytes, all of them `initial`.
    pub(crate) fn new(size: usize, initial: u8) -> Disk {
        let unit = Unit { fixed: BTreeSet::from([initial]), volatile: Vec::new() };
        let state = State {
            cache: vec![initial; size],
            units: vec![unit; size / UNIT],
            written: 0,
            errors: 0,
            seen: true,
            cursors: vec![0; SYNCS],
            delivered: 0,
            marked: false,
            log: Vec::new(),
            hold: |_| false,
            split: false,
            held: VecDeque::new(),
            fail: None,
        };
        Disk { state: Arc::new(Mutex::new(state)), descriptions: std::array::from_fn(|number| number) }
    }

    /// The same disk, opened again: other descriptions, which are told of an error that nobody has
    /// been told of.
    pub(crate) fn reopen(&self) -> Disk {
        let mut state = self.lock();
        let cursor = if state.seen { state.errors } else { state.errors - 1 };
        let descriptions = std::array::from_fn(|_| {
            state.cursors.push(cursor);
            state.cursors.len() - 1
        });
        drop(state);
        Disk { state: self.state.clone(), descriptions }
    }

    /// Whether a sync on a description that is opened now would succeed, and tell nobody.
    pub(crate) fn would_sync(&self) -> bool {
        self.lock().seen
    }

    /// Marks the inode in memory.
    pub(crate) fn mark(&self) {
        self.lock().marked = true;
    }

    /// Whether the inode in memory is marked.
    pub(crate) fn is_marked(&self) -> bool {
        self.lock().marked
    }

    /// Errors of syncs that have reached the server.
    pub(crate) fn delivered_errors(&self) -> u64 {
        self.lock().delivered
    }

    /// The server is gone, and with it what it had asked for and the kernel had not begun.
    pub(crate) fn abandon(&self) {
        self.lock().held.clear();
    }

    /// The file system is unmounted and mounted again: everything is written back, or lost, and whatever
    /// the kernel remembered about the file is forgotten.
    pub(crate) fn remount(&self, fault: Option<Fault>) {
        let mut state = self.lock();
        let (units, upto) = (state.units.len(), state.written);
        state.write_back(0..units, upto, fault.is_some());
        state.forget();
        state.marked = false;
        state.read_from_medium(|possible| *possible.first().expect("something is on the medium"));
    }

    /// The host loses its power and is up again; `choose` says which of the possible contents a unit has. The
    /// mark may look the same after it: a block device's sequence number can be the one that it had before.
    pub(crate) fn power_cut(&self, choose: impl FnMut(&BTreeSet<u8>) -> u8) {
        let mut state = self.lock();
        state.forget();
        state.read_from_medium(choose);
    }

    /// From now on, operations that `hold` picks wait until they are released.
    pub(crate) fn hold(&self, hold: Pick) {
        self.lock().hold = hold;
    }

    /// From now on, what is held is held twice.
    pub(crate) fn split(&self) {
        self.lock().split = true;
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

    /// Everything the disk was asked to do, in the order in which it began, but for storing the record.
    pub(crate) fn log(&self) -> Vec<Op> {
        self.lock().log.iter().copied().filter(|op| *op != Op::Persist).collect()
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

    /// The kernel writes a dirty unit back of its own accord, or fails to; returns whether the unit
    /// was dirty.
    pub(crate) fn write_back(&self, unit: usize, fault: Option<Fault>) -> bool {
        let mut state = self.lock();
        let upto = state.written;
        state.write_back(unit..unit + 1, upto, fault.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation: logs it, holds it, says what goes wrong with it.
    pub(crate) async fn begin(&self, op: Op) -> Option<i32> {
        {
            let mut state = self.lock();
            state.log.push(op);
            assert!(state.log.len() < OPERATIONS_MAX, "the server never stops asking");
        }
        let fault = self.wait(op, op).await;
        let always = self.lock().fail.filter(|(pick, _)| pick(&op)).map(|(_, fault)| fault);
        match fault.or(always) {
            Some(Fault::Errno(errno)) => Some(errno),
            Some(Fault::Panic) => panic!("planted"),
            None => None,
        }
    }

    /// The kernel has carried out an operation; its result reaches the server.
    pub(crate) async fn deliver(&self, op: Op) {
        if self.lock().split {
            self.wait(op, Op::Deliver).await;
        }
    }

    /// The same for a sync.
    pub(crate) async fn deliver_sync(&self, op: Op, told: &io::Result<()>) {
        self.deliver(op).await;
        self.lock().delivered += u64::from(told.is_err());
    }

    /// Holds `op`, shown as `shown`, if it is to be held.
    async fn wait(&self, op: Op, shown: Op) -> Option<Fault> {
        let gate = {
            let mut state = self.lock();
            (state.hold)(&op).then(|| {
                let (sender, receiver) = oneshot::channel();
                state.held.push_back((shown, sender));
                receiver
            })
        };
        match gate {
            Some(gate) => gate.await.expect("the disk outlives its operations"),
            None => None,
        }
    }

    /// Writes back what was written before `upto`, then asks for errors as `fsync` does.
    pub(crate) fn sync(&self, number: usize, upto: u64, errno: Option<i32>) -> io::Result<()> {
        let mut state = self.lock();
        let units = state.units.len();
        state.write_back(0..units, upto, errno.is_some());
        // The medium's own cache may fail to flush although nothing was dirty.
        state.error_if(errno.is_some());
        state.tell(self.descriptions[number])
    }

    /// How much has been written.
    pub(crate) fn written(&self) -> u64 {
        self.lock().written
    }

    fn zeroed(&self, at: u64, len: u64) {
        let range = place(at)..place(at + len);
        let mut state = self.lock();
        state.cache[range.clone()].fill(0);
        state.wrote(range, 0);
    }

    /// Stores data in the cache, unit by unit: a merged write carries several contents.
    fn store(&self, at: u64, data: &[u8]) {
        let mut state = self.lock();
        state.cache[place(at)..][..data.len()].copy_from_slice(data);
        for (number, unit) in data.chunks(UNIT).enumerate() {
            let start = place(at) + number * UNIT;
            state.wrote(start..start + unit.len(), unit[0]);
        }
    }
}

impl State {
    fn forget(&mut self) {
        (self.errors, self.seen) = (0, true);
        self.cursors.fill(0);
    }

    /// The cache holds what the medium holds.
    fn read_from_medium(&mut self, mut choose: impl FnMut(&BTreeSet<u8>) -> u8) {
        for (number, unit) in self.units.iter_mut().enumerate() {
            let volatile = std::mem::take(&mut unit.volatile);
            unit.fixed.extend(volatile.into_iter().map(|(_, value)| value));
            let content = choose(&unit.fixed);
            unit.fixed = BTreeSet::from([content]);
            self.cache[number * UNIT..][..UNIT].fill(content);
        }
    }

    /// A content has reached the cache.
    fn wrote(&mut self, range: Range<usize>, value: u8) {
        self.written += 1;
        for unit in &mut self.units[units(&range)] {
            unit.volatile.push((self.written, value));
        }
    }

    /// Writes back what was written to some units before `upto`; returns whether there was any.
    fn write_back(&mut self, units: Range<usize>, upto: u64, fails: bool) -> bool {
        let mut dirty = false;
        for unit in &mut self.units[units] {
            dirty |= unit.written_back(upto, fails);
        }
        self.error_if(dirty && fails);
        dirty
    }

    fn error_if(&mut self, fails: bool) {
        // Until somebody is told, another error is the same one.
        if fails && self.seen {
            self.errors += 1;
            self.seen = false;
        }
    }

    /// Tells a description of an error that it was not told of yet.
    fn tell(&mut self, description: usize) -> io::Result<()> {
        if self.cursors[description] == self.errors {
            return Ok(());
        }
        self.cursors[description] = self.errors;
        self.seen = true;
        self.marked = false;
        Err(io::Error::from_raw_os_error(5))
    }
}

impl Unit {
    /// What was written before `upto` is on the medium, or lost; returns whether there was any.
    fn written_back(&mut self, upto: u64, fails: bool) -> bool {
        let Some(place) = self.volatile.iter().rposition(|(number, _)| *number <= upto) else { return false };
        let written: Vec<u8> = self.volatile.drain(..=place).map(|(_, value)| value).collect();
        if fails {
            self.fixed.extend(written);
        } else {
            self.fixed = written.last().copied().into_iter().collect();
        }
        true
    }
}

impl Backend for Disk {
    fn shape(&self) -> Shape {
        Shape { syncs: SYNCS, ..Shape::capable(self.lock().cache.len() as u64) }
    }

    async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        // What is read is what was there when the read began: the answer may be long in coming.
        let (op, len) = (Op::Read(at, buf.len()), buf.len());
        buf.copy_from_slice(&self.lock().cache[place(at)..][..len]);
        let failed = self.begin(op).await;
        self.deliver(op).await;
        errno(failed).map(|()| buf)
    }

    async fn write(&self, at: u64, data: IoBuf) -> io::Result<()> {
        let op = Op::Write(at, data.len());
        let failed = self.begin(op).await;
        if failed.is_none() {
            self.store(at, &data);
        }
        self.deliver(op).await;
        errno(failed)
    }

    async fn flush(&self, number: usize) -> io::Result<()> {
        let upto = self.written();
        let failed = self.begin(Op::Sync).await;
        let told = self.sync(number, upto, failed);
        self.deliver_sync(Op::Sync, &told).await;
        told
    }

    async fn zero(&self, at: u64, len: u64, _how: Zeroing) -> io::Result<()> {
        let op = Op::Zero(at, len);
        let failed = self.begin(op).await;
        if failed.is_none() {
            self.zeroed(at, len);
        }
        self.deliver(op).await;
        errno(failed)
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        let op = Op::Trim(at, len);
        let failed = self.begin(op).await;
        if failed.is_none() {
            self.zeroed(at, len);
        }
        self.deliver(op).await;
        errno(failed)
    }
}

fn errno(failed: Option<i32>) -> io::Result<()> {
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

fn units(range: &Range<usize>) -> Range<usize> {
    range.start / UNIT..range.end.div_ceil(UNIT)
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("the disk is small")
}
