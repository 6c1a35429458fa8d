//! The record of an export, kept where no power cut reaches it, and slowly if a test says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;
use nbd_server::device::Io;
use nbd_server::durability::epoch::{Ledger, Record, Store};

/// Which boot of the host the simulated servers live in.
pub(crate) const BOOT: u128 = 1;

/// A record that outlives servers; clones are the same record.
#[derive(Clone)]
pub(crate) struct Kept(Arc<Mutex<State>>);

struct State {
    record: Option<Record>,
    drawn: u64,
    hold: bool,
    held: Vec<oneshot::Sender<()>>,
}

impl Kept {
    /// Nothing is kept yet.
    pub(crate) fn new() -> Kept {
        Kept(Arc::new(Mutex::new(State { record: None, drawn: 0, hold: false, held: Vec::new() })))
    }

    /// What a server starts with.
    pub(crate) fn ledger(&self) -> Ledger {
        let fresh = self.fresh();
        let mut state = self.lock();
        let record = Record::after(state.record, BOOT, fresh);
        state.record = Some(record);
        Ledger { record, store: Box::new(self.clone()) }
    }

    /// What is kept.
    pub(crate) fn record(&self) -> Record {
        self.lock().record.expect("a server has started")
    }

    /// The epoch of a server that would start in `boot` now.
    pub(crate) fn epoch_after(&self, boot: u128) -> u64 {
        Record::after(Some(self.record()), boot, u64::MAX).epoch
    }

    /// From now on keeping takes until [`Kept::release`].
    pub(crate) fn hold(&self) {
        self.lock().hold = true;
    }

    /// Lets what is held go on; returns whether there was something.
    pub(crate) fn release(&self) -> bool {
        let held = std::mem::take(&mut self.lock().held);
        let some = !held.is_empty();
        for gate in held {
            gate.send(()).expect("the server waits for it");
        }
        some
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Kept {
    fn keep(&self, record: Record) -> Io<'_, ()> {
        Box::pin(async move {
            let gate = {
                let mut state = self.lock();
                state.hold.then(|| {
                    let (sender, receiver) = oneshot::channel();
                    state.held.push(sender);
                    receiver
                })
            };
            if let Some(gate) = gate {
                gate.await.expect("the record outlives its server");
            }
            self.lock().record = Some(record);
            Ok(())
        })
    }

    fn fresh(&self) -> u64 {
        let mut state = self.lock();
        state.drawn += 1;
        state.drawn
    }
}
