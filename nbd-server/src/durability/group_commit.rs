//! Group commit and poison: syncs that are shared by every request that they cover.
//!
//! - A FLUSH is answered by a sync that covers every write answered before the FLUSH was received;
//!   a durable write, by one that covers the write. Requests that a running sync does not cover
//!   share the next one.
//! - With nothing written since the last sync that succeeded there is nothing to sync.
//! - Linux tells a failed write-back once per open file description, to whichever sync asks first. So
//!   there is one sync at a time on each description, nobody is answered before its result is known
//!   here, and several at once take several descriptions.
//! - A failed sync poisons the export for every connection, present and future, until the operator
//!   clears the poison: what it was to write is lost, and a later sync that succeeds proves nothing.
//!   Both events count: a request that was received, or a write that was begun, before one of them fails
//!   after it.

use std::io;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::device::Device;

/// The syncs of one export, shared by all workers.
pub(super) struct GroupCommit {
    state: Mutex<State>,
    /// Odd while the export is poisoned; grows by one when that begins or ends. Changed under the lock.
    generation: AtomicU64,
    /// A sync has ended, or the poison has changed.
    changed: Notify,
    /// The poison has changed. Apart, so that those who wait for it sleep through all syncs.
    health_changed: Notify,
}

struct State {
    /// Write-class requests that have changed the storage.
    written: Written,
    /// How many of those are stable.
    durable: Written,
    /// What each running sync covers.
    running: Vec<Option<Written>>,
    poison: Option<String>,
}

/// Write-class requests since the start, in the order in which the storage has carried them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Written {
    requests: u64,
    bytes: u64,
}

/// A promise to be made: the writes that must be stable, and when it was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Target {
    written: u64,
    generation: Generation,
}

impl Target {
    /// This target, and all writes of a later one.
    pub(super) fn including(self, later: Target) -> Target {
        Target { written: self.written.max(later.written), ..self }
    }
}

/// The times that the export was poisoned and cleared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Generation {
    fn is_poisoned(self) -> bool {
        self.0 % 2 == 1
    }

    /// How often the export was poisoned.
    fn losses(self) -> u64 {
        self.0.div_ceil(2)
    }
}

/// How many syncs may run at once for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtOnce {
    /// One: a FLUSH covers much, and those that come while it runs share the next one.
    One,
    /// As many as the storage has descriptions for: durable writes are short.
    Several,
}

/// What a request that waits for a sync does next.
enum Turn<'a> {
    Done,
    Wait,
    Lead(Lead<'a>),
}

impl GroupCommit {
    /// For a storage that has so many syncs at once. Writes of an earlier server may still be in the page
    /// cache, so the first FLUSH always syncs.
    pub(super) fn new(syncs: usize, poison: Option<String>) -> GroupCommit {
        let state = State {
            written: Written { requests: 1, bytes: 0 },
            durable: Written { requests: 0, bytes: 0 },
            running: vec![None; syncs],
            poison,
        };
        let generation = AtomicU64::new(u64::from(state.poison.is_some()));
        GroupCommit {
            state: Mutex::new(state),
            generation,
            changed: Notify::new(),
            health_changed: Notify::new(),
        }
    }

    /// The times that the export was poisoned and cleared.
    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Acquire))
    }

    /// Fails while the export is poisoned.
    pub(super) fn check(&self) -> io::Result<()> {
        self.check_since(self.generation())
    }

    /// Fails if the export is poisoned, or was since.
    pub(super) fn check_since(&self, begun: Generation) -> io::Result<()> {
        let now = self.generation();
        if now == begun && !now.is_poisoned() { Ok(()) } else { Err(self.lock().refusal()) }
    }

    /// How often the export was poisoned.
    pub(super) fn losses(&self) -> u64 {
        self.generation().losses()
    }

    /// The cause of the poison, and how often the export was poisoned.
    pub(super) fn poison_cause(&self) -> Option<(String, u64)> {
        let state = self.lock();
        Some((state.poison.clone()?, self.losses()))
    }

    /// Resolves when the export is not poisoned.
    pub(super) async fn healthy(&self) {
        loop {
            let changed = self.health_changed.notified();
            if !self.generation().is_poisoned() {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when the export is poisoned.
    pub(super) async fn poisoned(&self) {
        loop {
            let changed = self.health_changed.notified();
            if self.generation().is_poisoned() {
                return;
            }
            changed.await;
        }
    }

    /// Whether everything that was written is stable.
    pub(super) fn is_synced(&self) -> bool {
        let state = self.lock();
        state.poison.is_none() && state.durable >= state.written
    }

    /// Bytes written since the last sync; what was written twice counts twice.
    pub(super) fn unstable_bytes(&self) -> u64 {
        let state = self.lock();
        state.written.bytes - state.durable.bytes
    }

    /// Acknowledged data is lost, or may be: nothing succeeds from now on.
    pub(super) fn poison(&self, error: &io::Error) {
        self.set_poison(&mut self.lock(), error);
        self.changed.notify_waiters();
    }

    fn set_poison(&self, state: &mut State, error: &io::Error) {
        if state.poison.is_none() {
            state.poison = Some(error.to_string());
            self.generation.fetch_add(1, Release);
            self.health_changed.notify_waiters();
        }
    }

    /// Has every description tell what it has not told yet, while the export is poisoned: it is about what is
    /// known to be lost. What is told later is another loss.
    pub(super) async fn tell_old_errors(&self, storage: &dyn Device) {
        let syncs = self.lock().running.len();
        for sync in 0..syncs {
            let Some(lead) = self.occupy(sync).await else { return };
            let _told_already = storage.flush(sync).await;
            drop(lead);
        }
    }

    /// Occupies a sync, once it has ended, while the export is poisoned.
    async fn occupy(&self, sync: usize) -> Option<Occupied<'_>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                state.poison.as_ref()?;
                if state.running[sync].is_none() {
                    state.running[sync] = Some(Written { requests: 0, bytes: 0 });
                    return Some(Occupied { commit: self, sync });
                }
            }
            changed.await;
        }
    }

    /// The operator knows of the loss. Nobody knows what is stable.
    pub(super) fn clear_poison(&self) {
        let mut state = self.lock();
        if state.poison.take().is_some() {
            state.written.requests += 1;
            self.generation.fetch_add(1, Release);
        }
        drop(state);
        self.health_changed.notify_waiters();
        self.changed.notify_waiters();
    }

    /// Counts a write-class request that has changed the storage, or may have; returns what must be
    /// stable for the request to be durable.
    pub(super) fn wrote(&self, bytes: u64) -> Target {
        let mut state = self.lock();
        state.written.requests += 1;
        state.written.bytes = state.written.bytes.saturating_add(bytes);
        Target { written: state.written.requests, generation: self.generation() }
    }

    /// What a FLUSH that is received now must make stable.
    pub(super) fn target(&self) -> Target {
        let state = self.lock();
        Target { written: state.written.requests, generation: self.generation() }
    }

    /// Waits until what the target names is stable, by a sync of `storage` or somebody else's.
    pub(super) async fn reach(
        &self,
        target: Target,
        at_once: AtOnce,
        storage: &dyn Device,
    ) -> io::Result<()> {
        match self.turn(target, at_once)? {
            Turn::Done => Ok(()),
            // Boxed, as syncs are rare beside writes and would make every request's future longer.
            turn => Box::pin(self.take_turns(turn, target, at_once, storage)).await,
        }
    }

    async fn take_turns<'a>(
        &'a self,
        mut turn: Turn<'a>,
        target: Target,
        at_once: AtOnce,
        storage: &dyn Device,
    ) -> io::Result<()> {
        loop {
            match turn {
                Turn::Done => return Ok(()),
                Turn::Lead(lead) => {
                    let result = storage.flush(lead.sync).await;
                    lead.finish(result.as_ref().copied());
                }
                Turn::Wait => {
                    // Before the look, so that no change after it is missed.
                    let changed = self.changed.notified();
                    if matches!(self.lock().turn(target.written, at_once), Wanted::Wait) {
                        changed.await;
                    }
                }
            }
            turn = self.turn(target, at_once)?;
        }
    }

    /// Begins a sync that a write brings with it, unless one runs that others might share.
    pub(super) fn begin_alone(&self) -> io::Result<Option<Lead<'_>>> {
        let mut state = self.lock();
        if self.generation().is_poisoned() {
            return Err(state.refusal());
        }
        let is_alone = state.running.iter().all(Option::is_none);
        Ok(is_alone.then(|| self.lead(&mut state, 0)))
    }

    fn turn(&self, target: Target, at_once: AtOnce) -> io::Result<Turn<'_>> {
        let mut state = self.lock();
        let now = self.generation();
        if now != target.generation || now.is_poisoned() {
            return Err(state.refusal());
        }
        Ok(match state.turn(target.written, at_once) {
            Wanted::Nothing => Turn::Done,
            Wanted::Wait => Turn::Wait,
            Wanted::Sync(sync) => Turn::Lead(self.lead(&mut state, sync)),
        })
    }

    /// Begins a sync of everything that was written so far.
    fn lead(&self, state: &mut State, sync: usize) -> Lead<'_> {
        let covers = state.written;
        state.running[sync] = Some(covers);
        Lead { commit: self, sync, covers, ended: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What makes some writes stable.
enum Wanted {
    Nothing,
    /// A sync that runs, or the next one that can begin.
    Wait,
    /// The sync of this number.
    Sync(usize),
}

impl State {
    /// What makes so many writes stable.
    fn turn(&self, written: u64, at_once: AtOnce) -> Wanted {
        if self.durable.requests >= written {
            return Wanted::Nothing;
        }
        if self.running.iter().flatten().any(|covers| covers.requests >= written) {
            return Wanted::Wait;
        }
        if at_once == AtOnce::One && self.running.iter().any(Option::is_some) {
            return Wanted::Wait;
        }
        self.running.iter().position(Option::is_none).map_or(Wanted::Wait, Wanted::Sync)
    }

    /// Why nothing succeeds.
    fn refusal(&self) -> io::Error {
        io::Error::other(match &self.poison {
            Some(cause) => format!(
                "acknowledged data may be lost ({cause}) until the storage is repaired and \
                 nbd-server ctl clear-poison is run"
            ),
            None => "acknowledged data may have been lost while the request was under way".to_owned(),
        })
    }
}

/// The duty to run one sync and tell the others.
pub(super) struct Lead<'a> {
    commit: &'a GroupCommit,
    /// Its number.
    pub(super) sync: usize,
    covers: Written,
    ended: bool,
}

impl Lead<'_> {
    pub(super) fn finish(mut self, result: Result<(), &io::Error>) {
        self.end(Some(result));
    }

    /// The write that was to bring the sync with it failed, so there was none.
    pub(super) fn cancel(mut self) {
        self.end(None);
    }

    fn end(&mut self, result: Option<Result<(), &io::Error>>) {
        self.ended = true;
        let mut state = self.commit.lock();
        state.running[self.sync] = None;
        match result {
            None => {}
            Some(Ok(())) => state.durable = state.durable.max(self.covers),
            Some(Err(error)) => self.commit.set_poison(&mut state, error),
        }
        drop(state);
        self.commit.changed.notify_waiters();
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // A sync that was abandoned leaves the others without an answer: nobody knows what it did.
        if !self.ended {
            self.end(Some(Err(&io::Error::other("a sync was abandoned"))));
        }
    }
}

/// A sync that nobody else may run until this is dropped.
struct Occupied<'a> {
    commit: &'a GroupCommit,
    sync: usize,
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.commit.lock().running[self.sync] = None;
        self.commit.changed.notify_waiters();
    }
}
