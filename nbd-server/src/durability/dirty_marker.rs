//! The dirty marker: before a write is acknowledged that a crash could lose, the stored [`Record`]
//! says so.
//!
//! The marker is set once, durably, and stays set until the export has been quiet for a while:
//! a record that says too much costs a needless new epoch after a crash, and nothing else. A record
//! that says too little would hide a loss, so a request whose marker cannot be stored is made
//! durable before it is answered instead: then there is nothing to mark.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Mode;
use super::epoch::{Epoch, EpochStore, Record, Unstable};

/// The record of one export and where it is stored.
pub(super) struct DirtyMarker {
    store: Box<dyn EpochStore>,
    state: Mutex<State>,
    /// An attempt to store has ended.
    stored: Notify,
    /// There is something to do later: a marker is set, or an attempt has failed.
    pending: Notify,
}

struct State {
    /// What is true.
    record: Record,
    /// What is stored for sure; nothing while nobody knows.
    durable: Option<Record>,
    /// What is being stored.
    storing: Option<Record>,
    /// The last attempt has failed.
    failing: bool,
    /// How many of the export's losses have an epoch.
    losses: u64,
}

impl DirtyMarker {
    /// `losses` of the export have an epoch already: that of the record.
    pub(super) fn new(epoch: Epoch, losses: u64) -> DirtyMarker {
        let Epoch { record, store } = epoch;
        let state = State { durable: Some(record.clone()), record, storing: None, failing: false, losses };
        DirtyMarker { store, state: Mutex::new(state), stored: Notify::new(), pending: Notify::new() }
    }

    /// The epoch, which is another one from the moment on at which the export has suffered so many
    /// `losses`.
    pub(super) fn epoch(&self, losses: u64) -> u64 {
        let mut state = self.lock();
        if losses > state.losses {
            state.losses = losses;
            state.record.epoch = self.store.fresh_epoch();
        }
        state.record.epoch
    }

    /// Whether a crash at any moment finds stored that data may be unstable there.
    pub(super) fn is_marked(&self, unstable: Unstable) -> bool {
        unstable == Unstable::None || self.lock().is_marked(unstable)
    }

    /// Stores that data may be unstable there; returns whether it is stored. Where that is known to
    /// fail, it is not tried again before [`DirtyMarker::retry`].
    ///
    /// # Errors
    /// This attempt failed; those who waited for it are told `false`.
    pub(super) async fn mark(&self, unstable: Unstable) -> io::Result<bool> {
        {
            let mut state = self.lock();
            if state.failing {
                return Ok(false);
            }
            state.record.clean = false;
            state.record.unstable = state.record.unstable.max(unstable);
        }
        self.pending.notify_waiters();
        self.persist(Attempt::First).await?;
        Ok(self.is_marked(unstable))
    }

    /// Stores that nothing is unstable, and whether that is the `end`, if `is_true` still says so.
    pub(super) async fn unmark(&self, end: End, is_true: impl FnOnce() -> bool) -> io::Result<()> {
        {
            let mut state = self.lock();
            if !is_true() {
                return Ok(());
            }
            state.record.unstable = Unstable::None;
            state.record.clean = end == End::Clean;
        }
        self.persist(Attempt::Again).await
    }

    /// Stores a new epoch for the export's loss number `losses`, and the cause of its poison.
    pub(super) async fn note_loss(&self, losses: u64, cause: String) -> io::Result<()> {
        self.epoch(losses);
        {
            let mut state = self.lock();
            if state.losses == losses && state.record.poison.is_none() {
                state.record.poison = Some(cause);
                state.record.clean = false;
                // This is worth another attempt.
                state.failing = false;
            }
        }
        self.persist(Attempt::First).await
    }

    /// See [`EpochStore::mark_instance`].
    pub(super) fn mark_instance(&self) {
        self.store.mark_instance();
    }

    /// Stores that the poison of loss number `losses` is cleared.
    pub(super) async fn clear_poison(&self, losses: u64) -> io::Result<()> {
        {
            let mut state = self.lock();
            if state.losses == losses {
                state.record.poison = None;
            }
        }
        self.persist(Attempt::Again).await
    }

    /// Stores the mode.
    pub(super) async fn set_mode(&self, mode: Mode) -> io::Result<()> {
        self.lock().record.mode = mode;
        self.persist(Attempt::First).await
    }

    /// Stores again what could not be stored.
    pub(super) async fn retry(&self) -> io::Result<()> {
        self.persist(Attempt::Again).await
    }

    /// Resolves when a marker is set, or something could not be stored.
    pub(super) async fn pending(&self) {
        loop {
            let pending = self.pending.notified();
            {
                let state = self.lock();
                if state.failing || state.record.unstable > Unstable::None {
                    return;
                }
            }
            pending.await;
        }
    }

    /// Whether what is true could not be stored.
    pub(super) fn is_failing(&self) -> bool {
        self.lock().failing
    }

    /// Stores the record until what is stored is what is true. Fails only for its own attempt: one that
    /// is known to fail is left to [`DirtyMarker::retry`].
    async fn persist(&self, attempt: Attempt) -> io::Result<()> {
        loop {
            let stored = self.stored.notified();
            match self.next(attempt) {
                Next::Done => return Ok(()),
                Next::Wait => stored.await,
                Next::Store(storing) => {
                    let result = self.store.persist(storing.record.clone()).await;
                    storing.end(&result);
                    result?;
                }
            }
        }
    }

    fn next(&self, attempt: Attempt) -> Next<'_> {
        let mut state = self.lock();
        if state.storing.is_some() {
            return Next::Wait;
        }
        let is_left = state.failing && attempt == Attempt::First;
        if is_left || state.durable.as_ref() == Some(&state.record) {
            return Next::Done;
        }
        let record = state.record.clone();
        state.storing = Some(record.clone());
        Next::Store(Storing { marker: self, record, ended: false })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a server goes on after it has stored that nothing is unstable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It does.
    Open,
    /// It writes no more.
    Clean,
}

impl State {
    /// A crash at any moment finds either what is stored or what is being stored, and what is true is
    /// stored next.
    fn is_marked(&self, unstable: Unstable) -> bool {
        let says = |record: &Record| record.unstable >= unstable && !record.clean;
        says(&self.record)
            && self.durable.as_ref().is_some_and(says)
            && self.storing.as_ref().is_none_or(says)
    }
}

/// Whether it was tried before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Again,
}

/// What a task that wants the record stored does next.
enum Next<'a> {
    Done,
    Wait,
    Store(Storing<'a>),
}

/// The duty to store one record.
struct Storing<'a> {
    marker: &'a DirtyMarker,
    record: Record,
    ended: bool,
}

impl Storing<'_> {
    fn end(mut self, result: &io::Result<()>) {
        self.ended = true;
        let mut state = self.marker.lock();
        state.storing = None;
        state.failing = result.is_err();
        // After a failure nobody knows what is stored.
        state.durable = result.is_ok().then(|| self.record.clone());
        drop(state);
        self.marker.stored.notify_waiters();
        self.marker.pending.notify_waiters();
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let mut state = self.marker.lock();
            state.storing = None;
            state.durable = None;
            drop(state);
            self.marker.stored.notify_waiters();
        }
    }
}
