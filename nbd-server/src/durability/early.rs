//! `early-ack`: a write is acknowledged once it was received and copied into a bounded cache.
//!
//! - Reads see the cache, on every connection.
//! - FLUSH waits until everything acknowledged before it has left the cache, then syncs below.
//! - FUA, trims, zeroes and long writes wait until what they overlap has left, then go below.
//! - When the cache is full, acknowledgements wait; memory never grows.
//! - The first write that does not arrive below poisons the export: the next FLUSH, FUA or write
//!   says so, while reads still see the data, which stays in the cache.
//!
//! This layer lies under the order of overlapping writes and above a layer that keeps the promises
//! of `writeback`, so what leaves the cache can be synced like any other write.

mod cache;
mod writer;

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::command::{Fua, Zeroing};

use super::syncs::Syncs;
use crate::buf::IoBuf;
use crate::device::{Background, Clock, Device, Extent, Health, Io, Layer, overlaid};
use cache::Cache;

/// How much `early-ack` may hold, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyLimits {
    /// Bytes acknowledged and not yet below, per export.
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

/// Acknowledges early.
pub(super) struct Early {
    limits: EarlyLimits,
    syncs: Arc<Syncs>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    /// Everyone who waits for something to leave the cache.
    waiting: Vec<Waker>,
    /// The writer, while it has nothing to do.
    writer: Option<Waker>,
}

impl Early {
    /// `syncs` is the ledger of the layer below: one poison for both.
    pub(super) fn new(limits: EarlyLimits, syncs: Arc<Syncs>) -> Early {
        Early { limits, syncs, state: Mutex::default() }
    }

    /// Acknowledges a write that fits.
    async fn accept(&self, at: u64, data: IoBuf) -> io::Result<()> {
        let mut data = Some(data);
        self.wait_until(|state| {
            let len = data.as_ref().map_or(0, |data| data.len());
            if state.cache.held() + len > self.limits.dirty_max {
                // Somebody waits for room: nothing stays for the sake of merging.
                state.expedite(state.cache.last());
                return false;
            }
            if let Some(data) = data.take() {
                // Where something is dirty already, the writer has set itself a time.
                let first = state.cache.is_empty();
                state.cache.insert(at, data);
                if first {
                    state.wake_writer();
                }
            }
            true
        })
        .await
    }

    /// Waits until nothing in the range is in the cache. The order of overlapping writes keeps
    /// new ones out meanwhile.
    async fn drain(&self, range: Range<u64>) -> io::Result<()> {
        self.wait_until(|state| {
            let clear = !state.cache.overlaps(&range);
            if !clear {
                state.expedite(state.cache.last());
            }
            clear
        })
        .await
    }

    /// Waits until everything acknowledged before now has left.
    pub(super) async fn drain_all(&self) -> io::Result<()> {
        let number = self.lock().cache.last();
        self.wait_until(|state| {
            state.expedite(number);
            !state.cache.holds_up_to(number)
        })
        .await
    }

    /// Passes on an answer from below, unless the export was poisoned meanwhile; if it is, nobody
    /// needs to wait any longer.
    fn judge(&self, result: io::Result<()>) -> io::Result<()> {
        let result = result.and_then(|()| self.syncs.check());
        if result.is_err() && self.syncs.check().is_err() {
            self.lock().wake_waiting();
        }
        result
    }

    /// An acknowledged write did not arrive below.
    fn lost(&self, error: &io::Error) {
        self.syncs.poison(error);
        self.lock().wake_waiting();
    }

    /// Waits until `done` holds, or fails when the export is poisoned.
    async fn wait_until(&self, mut done: impl FnMut(&mut State) -> bool) -> io::Result<()> {
        poll_fn(|cx| {
            self.syncs.check()?;
            let mut state = self.lock();
            if done(&mut state) {
                return Poll::Ready(Ok(()));
            }
            state.register(cx);
            Poll::Pending
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes up to `number` shall leave now.
    fn expedite(&mut self, number: u64) {
        if self.cache.expedite(number) {
            self.wake_writer();
        }
    }

    fn register(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }

    fn wake_waiting(&mut self) {
        std::mem::take(&mut self.waiting).into_iter().for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

impl Layer for Arc<Early> {
    fn read<'a>(&'a self, below: &'a dyn Device, at: u64, mut buf: IoBuf) -> Io<'a, IoBuf> {
        // Taken before the read below begins: what leaves the cache meanwhile is not missed.
        let overlay = self.lock().cache.overlay(&(at..at + buf.len() as u64));
        Box::pin(async move {
            if !overlay.is_all_of(buf.len()) {
                buf = below.read(at, buf).await?;
            }
            overlay.apply(at, &mut buf);
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            if fua == Fua::No && data.len() <= self.limits.early_max {
                return self.accept(at, data).await;
            }
            self.drain(at..at + data.len() as u64).await?;
            self.judge(below.write(at, data, fua).await)
        })
    }

    fn flush<'a>(&'a self, below: &'a dyn Device) -> Io<'a, ()> {
        Box::pin(async move {
            self.drain_all().await?;
            self.judge(below.flush().await)
        })
    }

    fn zero<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, how: Zeroing, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            self.drain(at..at + len).await?;
            self.judge(below.zero(at, len, how, fua).await)
        })
    }

    fn trim<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            self.drain(at..at + len).await?;
            self.judge(below.trim(at, len, fua).await)
        })
    }

    fn extents<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64) -> Io<'a, Vec<Extent>> {
        // Taken before those below, as for a read.
        let overlay = self.lock().cache.overlay(&(at..at + len)).ranges();
        Box::pin(async move { Ok(overlaid(at, &below.extents(at, len).await?, overlay)) })
    }

    fn health(&self, below: Health) -> Health {
        let dirty_bytes = self.lock().cache.held();
        Health { dirty_bytes, unstable_bytes: below.unstable_bytes + dirty_bytes as u64, ..below }
    }

    fn background<'a>(&'a self, below: &'a dyn Device, clock: Rc<dyn Clock>) -> Background<'a> {
        Box::pin(async move { match writer::run(self, below, clock).await {} })
    }
}
