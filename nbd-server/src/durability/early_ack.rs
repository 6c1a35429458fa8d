//! The cache of `early-ack`: a write is acknowledged once it was received and copied into it.
//!
//! - Reads see the cache, on every connection.
//! - A FLUSH waits until everything acknowledged before it has been written to the storage.
//! - Whatever is not acknowledged early waits until what it overlaps in the cache has been written.
//! - When the cache is full, acknowledgements wait; memory never grows.
//! - The first write that cannot be written to the storage poisons the export: the next FLUSH, FUA or
//!   write says so, while reads still see the data, which stays in the cache.
//!
//! The cache is there in every mode, and empty in the others.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::sync::Notify;

use super::Clock;
use super::group_commit::GroupCommit;
use super::write_cache::{Overlay, WriteCache};
use crate::buf::IoBuf;
use crate::device::{Device, Piece};

/// How much `early-ack` may hold, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyLimits {
    /// Bytes of memory for writes that are acknowledged and not yet written to the storage, per export.
    pub dirty_max: usize,
    /// How long a write may stay in the cache, waiting for neighbours.
    pub dirty_age: Duration,
    /// Longest write that is acknowledged early, in bytes.
    pub early_max: usize,
}

impl Default for EarlyLimits {
    fn default() -> EarlyLimits {
        EarlyLimits { dirty_max: 64 << 20, dirty_age: Duration::from_secs(1), early_max: 128 << 10 }
    }
}

/// When writes up to which number are due.
type Timer = Option<(u64, Pin<Box<dyn Future<Output = ()>>>)>;

/// The cache of one export, shared by all workers.
pub(super) struct EarlyAck {
    limits: EarlyLimits,
    cache: Mutex<WriteCache>,
    /// A batch was written, or could not be.
    written: Notify,
    /// The writer has something to do.
    work: Notify,
}

impl EarlyAck {
    pub(super) fn new(limits: EarlyLimits) -> EarlyAck {
        EarlyAck { limits, cache: Mutex::default(), written: Notify::new(), work: Notify::new() }
    }

    /// Whether a write of so many bytes may be acknowledged early.
    pub(super) fn takes(&self, len: usize) -> bool {
        len <= self.limits.early_max
    }

    /// Takes a write, once there is room for it.
    pub(super) async fn insert(&self, at: u64, data: IoBuf, commit: &GroupCommit) -> io::Result<()> {
        let mut data = Some(data);
        self.wait_until(commit, |cache| {
            let needed = data.as_ref().map_or(0, WriteCache::memory_for);
            if cache.memory_bytes() + needed > self.limits.dirty_max && !cache.is_empty() {
                // Another write waits for room: nothing stays for the sake of merging.
                self.expedite(cache, cache.last());
                return false;
            }
            if let Some(data) = data.take() {
                // Where something is dirty already, the writer has set itself a time.
                let first = cache.is_empty();
                cache.insert(at, data);
                if first {
                    self.work.notify_one();
                }
            }
            true
        })
        .await
    }

    /// Waits until nothing in the range is in the cache. The order of overlapping writes keeps new
    /// ones out meanwhile.
    pub(super) async fn drain(&self, range: Range<u64>, commit: &GroupCommit) -> io::Result<()> {
        self.wait_until(commit, |cache| {
            let clear = !cache.overlaps(&range);
            if !clear {
                self.expedite(cache, cache.last());
            }
            clear
        })
        .await
    }

    /// Waits until everything acknowledged before now has been written.
    pub(super) async fn drain_all(&self, commit: &GroupCommit) -> io::Result<()> {
        let number = self.lock().last();
        self.wait_until(commit, |cache| {
            self.expedite(cache, number);
            !cache.is_pending(number)
        })
        .await
    }

    /// What a read or a look at extents of the range must see over what the storage says. To be taken
    /// before the storage is asked: what is written meanwhile is then not missed.
    pub(super) fn overlay(&self, range: &Range<u64>) -> Overlay {
        self.lock().overlay(range)
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Bytes that were acknowledged and not yet written.
    pub(super) fn payload_bytes(&self) -> usize {
        self.lock().payload_bytes()
    }

    /// Writes to the storage what is due, for as long as the export lives.
    ///
    /// Many small writes go as one, in the order of their places: to hand each to the disk by itself
    /// would cost more than the early acknowledgement saves. One batch is on its way at a time:
    /// buffered writes of one file exclude each other in the kernel, so that a second one would only
    /// spin, while what waits behind the first finds neighbours to merge with.
    pub(super) async fn write_back(
        &self,
        storage: &dyn Device,
        commit: &GroupCommit,
        clock: &dyn Clock,
    ) -> std::convert::Infallible {
        let mut timer = None;
        loop {
            let batch = self.next_batch(commit, clock, &mut timer).await;
            let bytes = batch.iter().map(|piece| piece.len() as u64).sum();
            let begun = commit.generation();
            let result = storage.write_many(batch).await;
            commit.wrote(bytes);
            match result.and_then(|()| commit.check_since(begun)) {
                Ok(()) => {
                    let written = self.lock().complete();
                    // Not while others wait for the cache.
                    drop(written);
                }
                // Where a sync failed meanwhile, the batch may be among what was lost.
                Err(error) => {
                    self.lock().restore();
                    commit.poison(&error);
                }
            }
            self.written.notify_waiters();
        }
    }

    /// Waits until something is due.
    async fn next_batch(&self, commit: &GroupCommit, clock: &dyn Clock, timer: &mut Timer) -> Vec<Piece> {
        loop {
            // What could not be written stays in the cache, where reads see it.
            commit.healthy().await;
            let last = {
                let mut cache = self.lock();
                let batch = cache.take_batch();
                if !batch.is_empty() {
                    return batch;
                }
                if cache.is_empty() { None } else { Some(cache.last()) }
            };
            let Some(last) = last else {
                *timer = None;
                self.work.notified().await;
                continue;
            };
            // Two rounds of half the age: no write stays longer than the whole.
            let (armed, sleep) = timer.get_or_insert_with(|| (last, clock.sleep(self.limits.dirty_age / 2)));
            let work = std::pin::pin!(self.work.notified());
            if let Either::Left(_) = select(sleep, work).await {
                self.lock().expedite(*armed);
                *timer = None;
            }
        }
    }

    /// Writes up to `number` are due now.
    fn expedite(&self, cache: &mut WriteCache, number: u64) {
        if cache.expedite(number) {
            self.work.notify_one();
        }
    }

    /// Waits until `done` holds, or fails when the export is poisoned.
    async fn wait_until(
        &self,
        commit: &GroupCommit,
        mut done: impl FnMut(&mut WriteCache) -> bool,
    ) -> io::Result<()> {
        commit.check()?;
        if done(&mut self.lock()) {
            return Ok(());
        }
        // Boxed, as it would make every request's future longer.
        Box::pin(self.keep_waiting(commit, done)).await
    }

    async fn keep_waiting(
        &self,
        commit: &GroupCommit,
        mut done: impl FnMut(&mut WriteCache) -> bool,
    ) -> io::Result<()> {
        loop {
            commit.check()?;
            let written = std::pin::pin!(self.written.notified());
            if done(&mut self.lock()) {
                return Ok(());
            }
            let poisoned = std::pin::pin!(commit.poisoned());
            select(written, poisoned).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, WriteCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
