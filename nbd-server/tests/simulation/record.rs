//! The record of an export, stored as the real one is: with the file itself, through an open file
//! description that nothing else uses.
//!
//! What is stored is seen by the next server of the same boot at once, and survives a power cut once it
//! was synced.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_server::device::{Io, sync_failure};
use nbd_server::durability::Mode;
use nbd_server::durability::epoch::{Epoch, EpochStore, Findings, Record, Unstable, Verdict, start};

use crate::disk::{Disk, Op};

/// The data of the file cannot be written back.
const EIO: i32 = 5;

/// A record that outlives servers; clones are the same record.
#[derive(Clone)]
pub(crate) struct Stored {
    disk: Disk,
    state: Arc<Mutex<State>>,
}

struct State {
    boot: u128,
    /// What the next server of this boot finds.
    visible: Option<Record>,
    /// What a power cut could leave: more than one where storing has failed.
    durable: Vec<Record>,
    drawn: u64,
}

impl Stored {
    /// Nothing is stored yet about what `disk` is a description of.
    pub(crate) fn new(disk: &Disk) -> Stored {
        let state = State { boot: 1, visible: None, durable: Vec::new(), drawn: 0 };
        Stored { disk: disk.reopen(), state: Arc::new(Mutex::new(state)) }
    }

    /// The host went down and is up again; `choose` picks one of so many records.
    pub(crate) fn reboot(&self, choose: impl FnOnce(usize) -> usize) {
        let mut state = self.lock();
        state.boot += 1;
        let chosen = choose(state.durable.len());
        let left = state.durable.swap_remove(chosen);
        state.visible = Some(left.clone());
        state.durable = vec![left];
    }

    /// The same record, stored through the description that answers FLUSH.
    pub(crate) fn sharing(&self, disk: &Disk) -> Stored {
        Stored { disk: disk.clone(), state: self.state.clone() }
    }

    /// What a server starts with that serves `disk`, which it has just opened.
    pub(crate) fn epoch(&self, disk: &Disk, mode: Mode) -> Epoch {
        let fresh = self.fresh_epoch();
        let (left, boot) = {
            let state = self.lock();
            (state.visible.clone(), state.boot)
        };
        let synced = || disk.sync(0, disk.written(), None);
        let record = after(left.as_ref(), boot, disk.is_marked(), fresh, mode, synced);
        disk.mark();
        let mut state = self.lock();
        (state.visible, state.durable) = (Some(record.clone()), vec![record.clone()]);
        let store = Stored { disk: self.disk.reopen(), state: self.state.clone() };
        Epoch { record, store: Box::new(store) }
    }

    /// What the next server of this boot finds.
    pub(crate) fn record(&self) -> Record {
        self.lock().visible.clone().expect("a server has started")
    }

    /// The epoch of a server that would start after a kill.
    pub(crate) fn epoch_after_kill(&self) -> u64 {
        let synced = || if self.disk.would_sync() { Ok(()) } else { Err(io::ErrorKind::Other.into()) };
        let state = self.lock();
        let left = state.visible.as_ref();
        after(left, state.boot, self.disk.is_marked(), u64::MAX, Mode::Writeback, synced).epoch
    }

    /// Whether a server that would start after a power cut could have this epoch.
    pub(crate) fn may_survive_power_cut(&self, epoch: u64) -> bool {
        let state = self.lock();
        let after = |left| after(Some(left), state.boot + 1, true, u64::MAX, Mode::Writeback, || Ok(()));
        state.durable.iter().any(|left| after(left).epoch == epoch)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What holds for a server that starts in `boot` on what another one `left` of the same file.
fn after(
    left: Option<&Record>,
    boot: u128,
    is_marked: bool,
    fresh: u64,
    mode: Mode,
    synced: impl FnOnce() -> io::Result<()>,
) -> Record {
    let renewed = Record::unknown(fresh, boot, mode);
    let Some(left) = left else { return renewed };
    let same_boot = left.boot == boot;
    let found = Findings { same_storage: true, same_boot, same_instance: is_marked, unchanged: true };
    let kept = Record { clean: false, boot, mode, ..left.clone() };
    match start(left, found) {
        Verdict::Keep => kept,
        Verdict::Renew(_) => Record { poison: kept.poison, ..renewed },
        Verdict::KeepIfSynced => match synced() {
            Ok(()) => Record { unstable: Unstable::None, ..kept },
            Err(error) => Record { poison: Some(error.to_string()), ..renewed },
        },
    }
}

impl EpochStore for Stored {
    fn persist(&self, record: Record) -> Io<'_, ()> {
        Box::pin(async move {
            let upto = self.disk.written();
            let failed = self.disk.begin(Op::Persist).await;
            self.lock().visible = Some(record.clone());
            // A failure of the journal is no failure of the data.
            let of_data = failed.filter(|errno| *errno == EIO);
            let told = self.disk.sync(0, upto, of_data).map_err(sync_failure);
            let journal = failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
            let is_stored = told.is_ok() && failed.is_none();
            if is_stored {
                self.lock().durable = vec![record];
            } else {
                self.lock().durable.push(record);
            }
            self.disk.deliver_sync(Op::Persist, &told).await;
            told.and(journal)
        })
    }

    fn mark_instance(&self) {
        self.disk.mark();
    }

    fn fresh_epoch(&self) -> u64 {
        let mut state = self.lock();
        state.drawn += 1;
        state.drawn
    }
}
