//! The gate before the durability layers: which mode is in force, who is under way, and what is
//! kept about unstable data.
//!
//! Write-class requests and FLUSHes pass through it. It is closed while the mode changes, so that
//! no request is under way in two modes; and whoever may leave acknowledged data unstable passes
//! only after that fact is on record, durably: a crash must find it there.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Mode;
use super::epoch::{Held, Ledger, Record, Store};

/// The gate of one export, shared by all workers.
pub(super) struct Gate {
    store: Box<dyn Store>,
    state: Mutex<State>,
}

struct State {
    mode: Mode,
    closed: bool,
    /// Requests that have passed and not ended.
    inside: usize,
    /// Requests that have passed.
    passed: u64,
    /// What is true.
    record: Record,
    /// What is kept for sure.
    kept: Record,
    /// What is being kept at the moment.
    keeping: Option<Record>,
    /// Whether the present poison has been given an epoch of its own.
    loss_noted: bool,
    waiting: Vec<Waker>,
    /// Who waits for the record to say that something is unstable.
    resting: Option<Waker>,
}

/// Somebody else has closed the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AlreadyClosed;

impl Gate {
    pub(super) fn new(mode: Mode, ledger: Ledger) -> Gate {
        let Ledger { record, store } = ledger;
        let state = State {
            mode,
            closed: false,
            inside: 0,
            passed: 0,
            record,
            kept: record,
            keeping: None,
            loss_noted: false,
            waiting: Vec::new(),
            resting: None,
        };
        Gate { store, state: Mutex::new(state) }
    }

    /// The mode in force.
    pub(super) fn mode(&self) -> Mode {
        self.lock().mode
    }

    /// Passes a request; `leaves` tells where its data may be when it was acknowledged in a mode.
    pub(super) async fn enter(&self, leaves: impl Fn(Mode) -> Held) -> io::Result<Pass<'_>> {
        loop {
            let Some(pass) = poll_fn(|cx| self.poll_enter(cx, &leaves)).await else {
                self.keep().await?;
                continue;
            };
            return Ok(pass);
        }
    }

    /// A pass, or nothing if the record must be kept first.
    fn poll_enter(&self, cx: &Context<'_>, leaves: &impl Fn(Mode) -> Held) -> Poll<Option<Pass<'_>>> {
        let mut state = self.lock();
        if state.closed {
            return state.wait(cx);
        }
        let held = leaves(state.mode);
        if held > state.record.held {
            state.record.held = held;
            state.resting.take().into_iter().for_each(Waker::wake);
        }
        if !state.is_on_record(held) {
            return if state.keeping.is_some() { state.wait(cx) } else { Poll::Ready(None) };
        }
        state.inside += 1;
        state.passed += 1;
        Poll::Ready(Some(Pass { gate: self, mode: state.mode }))
    }

    /// Closes the gate and waits until nobody is under way.
    pub(super) async fn close(&self) -> Result<Closed<'_>, AlreadyClosed> {
        let closed = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.closed, true) {
                return Err(AlreadyClosed);
            }
            Closed { gate: self }
        };
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.inside == 0 { Poll::Ready(()) } else { state.wait(cx) }
        })
        .await;
        Ok(closed)
    }

    /// How many requests have passed.
    pub(super) fn passed(&self) -> u64 {
        self.lock().passed
    }

    /// Waits until something is on record as unstable.
    pub(super) async fn until_unstable(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.record.held > Held::Nowhere {
                return Poll::Ready(());
            }
            state.resting = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Puts on record that nothing is unstable, if nobody is under way and `settled` says so.
    pub(super) async fn rest(&self, settled: impl FnOnce() -> bool) -> io::Result<()> {
        {
            let mut state = self.lock();
            if state.inside > 0 || !settled() {
                return Ok(());
            }
            state.record.held = Held::Nowhere;
        }
        self.keep().await
    }

    /// The epoch; a new one from the moment on at which the export is `poisoned`.
    pub(super) fn epoch(&self, poisoned: bool) -> u64 {
        let mut state = self.lock();
        if poisoned && !state.loss_noted {
            state.loss_noted = true;
            state.record.epoch = self.store.fresh();
        }
        state.record.epoch
    }

    /// Keeps the epoch of a poisoned export.
    pub(super) async fn note_loss(&self) {
        self.epoch(true);
        if let Err(error) = self.keep().await {
            tracing::warn!(%error, "cannot keep the new epoch; the next server will choose another one");
        }
    }

    /// The operator knows of the loss: the next one is another.
    pub(super) fn forget_loss(&self) {
        self.lock().loss_noted = false;
    }

    /// Keeps the record until what is kept is what is true.
    async fn keep(&self) -> io::Result<()> {
        while let Some(keeping) = poll_fn(|cx| self.poll_keep(cx)).await {
            let kept = self.store.keep(keeping.record).await;
            keeping.end(&kept);
            kept?;
        }
        Ok(())
    }

    /// The duty to keep the record, if it is not kept yet.
    fn poll_keep(&self, cx: &Context<'_>) -> Poll<Option<Keeping<'_>>> {
        let mut state = self.lock();
        if state.keeping.is_some() {
            return state.wait(cx);
        }
        if state.kept == state.record {
            return Poll::Ready(None);
        }
        state.keeping = Some(state.record);
        Poll::Ready(Some(Keeping { gate: self, record: state.record, ended: false }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a crash at any moment finds on record that data may be `held` there.
    fn is_on_record(&self, held: Held) -> bool {
        self.kept.held >= held && self.keeping.is_none_or(|record| record.held >= held)
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&mut self) {
        std::mem::take(&mut self.waiting).into_iter().for_each(Waker::wake);
    }
}

/// A request that has passed; it has ended when this is dropped.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    mode: Mode,
}

impl Pass<'_> {
    /// The mode in which the request runs.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside -= 1;
        if state.closed && state.inside == 0 {
            state.wake();
        }
    }
}

/// The gate is closed until this is dropped.
pub(super) struct Closed<'a> {
    gate: &'a Gate,
}

impl Closed<'_> {
    /// Opens the gate in another mode.
    pub(super) fn open_in(self, mode: Mode) {
        self.gate.lock().mode = mode;
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.closed = false;
        state.wake();
    }
}

/// The duty to keep one record.
struct Keeping<'a> {
    gate: &'a Gate,
    record: Record,
    ended: bool,
}

impl Keeping<'_> {
    fn end(mut self, result: &io::Result<()>) {
        self.ended = true;
        let mut state = self.gate.lock();
        match result {
            Ok(()) => state.kept = self.record,
            // Nobody knows what is there now.
            Err(_) => state.kept.held = Held::Nowhere,
        }
        state.keeping = None;
        state.wake();
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let mut state = self.gate.lock();
            state.keeping = None;
            state.kept.held = Held::Nowhere;
            state.wake();
        }
    }
}
