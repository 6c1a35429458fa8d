//! Group commit and poison: one sync at a time, shared by those who may share it.
//!
//! - A FLUSH is answered only by a sync that *started after* the FLUSH was received; those that
//!   arrive while one runs share the next one.
//! - With nothing written since the last durable point there is nothing to sync.
//! - The first failed sync poisons the export for every connection, present and future, until
//!   the operator forgives it: the kernel reports lost writes once, and a second sync that returns
//!   success proves nothing. A sync that succeeded checks for poison again before anyone is told.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::device::{Device, is_sync_failure};

/// The state of one export's syncs, shared by all workers.
pub(super) struct Syncs(Mutex<State>);

struct State {
    /// Write-class requests that have changed the device without being stable.
    written: u64,
    /// How many of those are stable.
    durable: u64,
    /// Bytes that those not yet stable have written.
    unstable_bytes: u64,
    /// Syncs that have started.
    started: u64,
    /// Syncs that have ended.
    finished: u64,
    poison: Option<String>,
    waiting: Vec<Waker>,
    /// Who waits to be forgiven.
    poisoned: Option<Waker>,
}

/// What a waiting FLUSH is to do.
enum Turn<'a> {
    Done,
    Lead(Lead<'a>),
}

impl Syncs {
    /// Nothing has been synced yet, and writes of an earlier server may still be in the page
    /// cache: the first FLUSH always syncs.
    pub(super) fn new() -> Syncs {
        Syncs(Mutex::new(State {
            written: 1,
            durable: 0,
            unstable_bytes: 0,
            started: 0,
            finished: 0,
            poison: None,
            waiting: Vec::new(),
            poisoned: None,
        }))
    }

    /// Fails if a sync ever failed and was not forgiven.
    pub(super) fn check(&self) -> io::Result<()> {
        self.lock().check()
    }

    /// Whether [`Syncs::check`] fails.
    pub(super) fn is_poisoned(&self) -> bool {
        self.lock().poison.is_some()
    }

    /// Waits while the export is poisoned; for one task, the writer of the early-ack cache.
    pub(super) fn poll_well(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.poison.is_none() {
            return Poll::Ready(());
        }
        state.poisoned = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether everything that was written is stable.
    pub(super) fn are_done(&self) -> bool {
        let state = self.lock();
        state.poison.is_none() && state.durable >= state.written
    }

    /// The operator knows that acknowledged data may be lost. Nobody knows what is stable.
    pub(super) fn forgive(&self) {
        let mut state = self.lock();
        state.written += 1;
        if let Some(cause) = state.poison.take() {
            tracing::warn!(%cause, "the operator forgives the loss: FLUSH and writes work again");
        }
        state.poisoned.take().into_iter().for_each(Waker::wake);
    }

    /// Acknowledged data is lost, or may be: nothing succeeds from now on.
    pub(super) fn poison(&self, error: &io::Error) {
        self.lock().poison(error);
    }

    /// So many bytes were written, or may have been, and are not stable.
    pub(super) fn wrote(&self, bytes: u64) {
        let mut state = self.lock();
        state.written += 1;
        state.unstable_bytes = state.unstable_bytes.saturating_add(bytes);
    }

    /// Bytes written since the last durable point; what was written twice counts twice.
    pub(super) fn unstable_bytes(&self) -> u64 {
        self.lock().unstable_bytes
    }

    /// Judges a write that made itself stable: its failed sync poisons like any other, and its
    /// success counts only if no sync failed meanwhile.
    pub(super) fn synced_by_itself(&self, result: io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        match result {
            Err(error) if is_sync_failure(&error) => {
                state.poison(&error);
                Err(error)
            }
            Err(error) => Err(error),
            Ok(()) => state.check(),
        }
    }

    /// Makes everything that was written before this call stable.
    pub(super) async fn sync(&self, below: &dyn Device) -> io::Result<()> {
        let Some(wanted) = self.wanted()? else { return Ok(()) };
        loop {
            match poll_fn(|cx| self.poll_turn(cx, wanted)).await? {
                Turn::Done => return Ok(()),
                Turn::Lead(lead) => lead.finish(below.flush().await),
            }
        }
    }

    /// The number of the first sync that answers a FLUSH received now, if one is needed.
    fn wanted(&self) -> io::Result<Option<u64>> {
        let state = self.lock();
        state.check()?;
        Ok((state.durable < state.written).then_some(state.started + 1))
    }

    fn poll_turn(&self, cx: &Context<'_>, wanted: u64) -> Poll<io::Result<Turn<'_>>> {
        let mut state = self.lock();
        state.check()?;
        if state.finished >= wanted {
            return Poll::Ready(Ok(Turn::Done));
        }
        if state.started == state.finished {
            state.started += 1;
            let (covers, bytes) = (state.written, state.unstable_bytes);
            let lead = Lead { syncs: self, covers, bytes, ended: false };
            return Poll::Ready(Ok(Turn::Lead(lead)));
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(io::Error::other(format!(
                "acknowledged data may be lost ({cause}) until the storage is repaired and nbd-server ctl clear-poison is run"
            ))),
        }
    }

    fn poison(&mut self, error: &io::Error) {
        if self.poison.is_none() {
            tracing::error!(%error, "acknowledged data may be lost: every FLUSH and write fails from now on");
            self.poison = Some(error.to_string());
        }
    }
}

/// The duty to run one sync and tell the others.
struct Lead<'a> {
    syncs: &'a Syncs,
    /// The writes that had returned when the sync started.
    covers: u64,
    /// Their bytes.
    bytes: u64,
    ended: bool,
}

impl Lead<'_> {
    fn finish(mut self, result: io::Result<()>) {
        self.end(result);
    }

    fn end(&mut self, result: io::Result<()>) {
        self.ended = true;
        let mut state = self.syncs.lock();
        state.finished = state.started;
        match result {
            Ok(()) => {
                state.durable = state.durable.max(self.covers);
                state.unstable_bytes -= self.bytes;
            }
            Err(error) => state.poison(&error),
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Whoever abandons a sync leaves the others without an answer: nobody knows what it did.
        if !self.ended {
            self.end(Err(io::Error::other("a sync was abandoned")));
        }
    }
}
