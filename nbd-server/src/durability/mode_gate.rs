//! The gate through which write-class requests and FLUSHes pass: it tells each the mode in which it
//! runs, and is closed while the mode changes, so that no request runs in two modes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Mode;

/// The gate of one export, shared by all workers.
pub(super) struct ModeGate {
    state: Mutex<State>,
    /// The gate has opened, or the last request inside has ended.
    changed: Notify,
}

struct State {
    mode: Mode,
    closed: bool,
    /// Requests that have entered and not ended.
    inside: usize,
    /// Requests that have entered.
    entered: u64,
}

/// Somebody else has closed the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AlreadyClosed;

impl ModeGate {
    pub(super) fn new(mode: Mode) -> ModeGate {
        let state = State { mode, closed: false, inside: 0, entered: 0 };
        ModeGate { state: Mutex::new(state), changed: Notify::new() }
    }

    /// The mode in force.
    pub(super) fn mode(&self) -> Mode {
        self.lock().mode
    }

    /// How many requests have entered.
    pub(super) fn entered(&self) -> u64 {
        self.lock().entered
    }

    /// Whether no request is inside.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().inside == 0
    }

    /// Lets a request in, once the gate is open.
    pub(super) async fn enter(&self) -> Pass<'_> {
        match self.try_enter() {
            Some(pass) => pass,
            // Boxed, as it is rare and would make every request's future longer.
            None => Box::pin(self.wait_and_enter()).await,
        }
    }

    async fn wait_and_enter(&self) -> Pass<'_> {
        loop {
            let changed = self.changed.notified();
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            changed.await;
        }
    }

    fn try_enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.inside += 1;
        state.entered += 1;
        Some(Pass { gate: self, mode: state.mode })
    }

    /// Closes the gate and waits until no request is inside.
    pub(super) async fn close(&self) -> Result<Closed<'_>, AlreadyClosed> {
        if std::mem::replace(&mut self.lock().closed, true) {
            return Err(AlreadyClosed);
        }
        let closed = Closed { gate: self };
        loop {
            let changed = self.changed.notified();
            if self.is_empty() {
                return Ok(closed);
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that has entered; it has ended when this is dropped.
pub(super) struct Pass<'a> {
    gate: &'a ModeGate,
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
            drop(state);
            self.gate.changed.notify_waiters();
        }
    }
}

/// The gate is closed until this is dropped.
pub(super) struct Closed<'a> {
    gate: &'a ModeGate,
}

impl Closed<'_> {
    /// Puts another mode in force and opens the gate.
    pub(super) fn open_in(self, mode: Mode) {
        self.gate.lock().mode = mode;
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.gate.lock().closed = false;
        self.gate.changed.notify_waiters();
    }
}
