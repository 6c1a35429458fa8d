//! The dirty data of `early-ack`: what was acknowledged and is not yet in the kernel.
//!
//! Two sets of extents: *dirty* ones, which hold the newest content and may still be replaced by
//! later writes, and those *leaving*, which are being written and are fixed. Neither set overlaps
//! itself. An extent remembers the oldest write whose promise it carries, so that a FLUSH knows
//! whom to wait for even when a write it covers was replaced by a newer one.
//!
//! Plain data, no waiting: [`super::Early`] locks it, [`super::writer`] empties it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::buf::{IoBuf, Slice};
use crate::device::Piece;

/// Longest write that is put together from adjacent extents, in bytes.
const MERGE_MAX: u64 = 1 << 20;

/// A payload and its share of the dirty memory, given back when the last extent of it is gone.
struct Payload {
    data: IoBuf,
    held: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.held.fetch_sub(self.data.len(), Ordering::AcqRel);
    }
}

/// Some bytes at some place: a part of one payload.
#[derive(Clone)]
struct Extent {
    at: u64,
    payload: Arc<Payload>,
    part: Range<usize>,
    oldest: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.at + self.part.len() as u64
    }

    fn bytes(&self) -> &[u8] {
        &self.payload.data[self.part.clone()]
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.at < range.end && range.start < self.end()
    }

    /// The part of this extent inside `range`, which must overlap it.
    fn clip(&self, range: &Range<u64>) -> Extent {
        let at = self.at.max(range.start);
        let from = self.part.start + usize::try_from(at - self.at).expect("inside the payload");
        let len = usize::try_from(self.end().min(range.end) - at).expect("inside the payload");
        Extent { at, part: from..from + len, ..self.clone() }
    }
}

/// Dirty and leaving extents of one export.
#[derive(Default)]
pub(super) struct Cache {
    dirty: BTreeMap<u64, Extent>,
    /// The dirty extents by age: oldest promise, then place.
    ages: BTreeSet<(u64, u64)>,
    /// By place, too.
    leaving: BTreeMap<u64, Batch>,
    held: Arc<AtomicUsize>,
    /// Number of the last write that was accepted.
    last: u64,
    /// Writes up to this number shall leave now.
    due: u64,
}

/// Adjacent extents that leave as one write.
struct Batch {
    extents: Vec<Extent>,
    end: u64,
    oldest: u64,
}

/// What overlays a range: older parts first.
pub(super) struct Overlay(Vec<Extent>);

impl Overlay {
    /// Puts the newer bytes over those that were read from byte `at`.
    pub(super) fn apply(&self, at: u64, buf: &mut [u8]) {
        for extent in &self.0 {
            let from = usize::try_from(extent.at - at).expect("clipped to the read");
            buf[from..from + extent.part.len()].copy_from_slice(extent.bytes());
        }
    }

    /// Whether the overlay alone has every byte of a read of `len` bytes.
    pub(super) fn is_all_of(&self, len: usize) -> bool {
        matches!(&self.0[..], [one] if one.part.len() == len)
    }
}

impl Cache {
    /// Bytes of memory held: whole payloads, until the last part of each has left.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// Takes the content of a write; returns its number.
    pub(super) fn insert(&mut self, at: u64, data: IoBuf) -> u64 {
        self.last += 1;
        let range = at..at + data.len() as u64;
        self.held.fetch_add(data.len(), Ordering::AcqRel);
        let part = 0..data.len();
        let payload = Arc::new(Payload { data, held: self.held.clone() });
        let oldest = self.cut(&range).unwrap_or(self.last);
        self.put(Extent { at, payload, part, oldest });
        self.last
    }

    /// Number of the last write taken.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Writes up to `number` shall leave now; returns whether that is news.
    pub(super) fn expedite(&mut self, number: u64) -> bool {
        let news = number > self.due;
        self.due = self.due.max(number);
        news
    }

    /// Whether the promise of some write up to `number` is not yet kept.
    pub(super) fn holds_up_to(&self, number: u64) -> bool {
        self.ages.first().is_some_and(|(oldest, _)| *oldest <= number)
            || self.leaving.values().any(|batch| batch.oldest <= number)
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.leaving.is_empty()
    }

    /// Whether some extent overlaps the range.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_some() || self.leaves(range)
    }

    /// What a read of `range` must see over what is below.
    pub(super) fn overlay(&self, range: &Range<u64>) -> Overlay {
        let leaving = self.leaving_in(range).flat_map(|batch| &batch.extents);
        let older = leaving.filter(|extent| extent.overlaps(range));
        let newer = self.overlapping(range).map(|(_, extent)| extent);
        Overlay(older.chain(newer).map(|extent| extent.clip(range)).collect())
    }

    /// Moves the next due extent, with its neighbours, from dirty to leaving. None is due whose
    /// place is being written already: older content must land first.
    pub(super) fn leave(&mut self) -> Option<Piece> {
        let due = self.ages.iter().take_while(|(oldest, _)| *oldest <= self.due);
        let extents = due.map(|(_, at)| &self.dirty[at]);
        let first = extents.into_iter().find(|extent| !self.leaves(&(extent.at..extent.end())))?.clone();
        let mut run = vec![first.clone()];
        let (mut start, mut end) = (first.at, first.end());
        while let Some(next) = self.dirty.get(&end).filter(|next| self.joins(next, end - start)) {
            run.push(next.clone());
            end = next.end();
        }
        while let Some((_, before)) = self.dirty.range(..start).next_back() {
            if before.end() != start || !self.joins(before, end - start) {
                break;
            }
            run.insert(0, before.clone());
            start = before.at;
        }
        for extent in &run {
            self.take(extent.at);
        }
        let parts =
            run.iter().map(|extent| Slice::new(extent.payload.clone(), extent.part.clone())).collect();
        let oldest = run.iter().map(|extent| extent.oldest).min().unwrap_or(first.oldest);
        self.leaving.insert(start, Batch { extents: run, end, oldest });
        Some(Piece { at: start, parts })
    }

    /// What left from byte `at` on has arrived below.
    pub(super) fn arrived(&mut self, at: u64) {
        self.leaving.remove(&at);
    }

    /// What left from byte `at` on did not arrive: it is dirty again, under what came since.
    pub(super) fn came_back(&mut self, at: u64) {
        for extent in self.leaving.remove(&at).map(|batch| batch.extents).into_iter().flatten() {
            let range = extent.at..extent.end();
            let newer: Vec<Extent> = self.overlapping(&range).map(|(_, newer)| newer.clip(&range)).collect();
            let oldest = extent.oldest.min(self.cut(&range).unwrap_or(u64::MAX));
            self.put(Extent { oldest, ..extent });
            for extent in newer {
                self.cut(&(extent.at..extent.end()));
                self.put(Extent { oldest, ..extent });
            }
        }
    }

    /// Whether `extent` may join a run of `len` bytes.
    fn joins(&self, extent: &Extent, len: u64) -> bool {
        len + extent.part.len() as u64 <= MERGE_MAX && !self.leaves(&(extent.at..extent.end()))
    }

    fn leaves(&self, range: &Range<u64>) -> bool {
        self.leaving_in(range).next().is_some()
    }

    fn leaving_in(&self, range: &Range<u64>) -> impl Iterator<Item = &Batch> {
        let before = self.leaving.range(..range.start).next_back().map(|(_, batch)| batch);
        let inside = self.leaving.range(range.clone()).map(|(_, batch)| batch);
        before.filter(|batch| batch.end > range.start).into_iter().chain(inside)
    }

    fn overlapping<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = (&'a u64, &'a Extent)> {
        let before = self.dirty.range(..range.start).next_back().filter(|(_, extent)| extent.overlaps(range));
        before.into_iter().chain(self.dirty.range(range.clone()))
    }

    /// Makes room for newer content: what is dirty in `range` goes, what sticks out stays.
    /// Returns the oldest promise among what went.
    fn cut(&mut self, range: &Range<u64>) -> Option<u64> {
        let old: Vec<Extent> = self.overlapping(range).map(|(_, extent)| extent.clone()).collect();
        for extent in &old {
            self.take(extent.at);
            if extent.at < range.start {
                self.put(extent.clip(&(extent.at..range.start)));
            }
            if extent.end() > range.end {
                self.put(extent.clip(&(range.end..extent.end())));
            }
        }
        old.iter().map(|extent| extent.oldest).min()
    }

    fn put(&mut self, extent: Extent) {
        self.ages.insert((extent.oldest, extent.at));
        self.dirty.insert(extent.at, extent);
    }

    fn take(&mut self, at: u64) {
        if let Some(extent) = self.dirty.remove(&at) {
            self.ages.remove(&(extent.oldest, at));
        }
    }
}

#[cfg(test)]
mod tests;
