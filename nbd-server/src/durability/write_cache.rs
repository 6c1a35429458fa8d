//! The dirty data of `early-ack`: what was acknowledged and is not yet in the kernel.
//!
//! Two sets of extents: *dirty* ones, which hold the newest content and may still be replaced by
//! later writes, and one batch *in flight*, which is being written and is fixed. Neither set overlaps
//! itself. An extent remembers the oldest write whose promise it carries, so that a FLUSH knows
//! what to wait for even when a write it covers was replaced by a newer one.
//!
//! Memory is counted as it is taken: a payload that fills less than half of its pages is copied into as
//! many bytes as it has, any other one counts with its pages, and each with what manages it.
//!
//! Plain data, no waiting: [`super::early_ack`] locks it and empties it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::buf::{IoBuf, Slice};
use crate::device::Piece;

/// Pieces of a batch: the cost of handing it over is then a small part of each.
const PIECES_MAX: usize = 256;
/// Bytes of a batch and of the longest piece: some 10 ms for a slow disk.
const BYTES_MAX: u64 = 1 << 20;

/// Memory that manages a payload, in bytes: its extent, its places in two trees, and those of the
/// remainder that an insertion into the middle of an older extent leaves behind.
const OVERHEAD: usize = 384;

/// A payload, counted until its last extent is gone.
struct Payload {
    data: Data,
    usage: Arc<Usage>,
}

/// The bytes of a payload.
enum Data {
    /// As they were received.
    Pages(IoBuf),
    /// As many bytes as there are.
    Compact(Box<[u8]>),
}

/// What a cache holds.
#[derive(Debug, Default)]
struct Usage {
    /// Bytes of payload.
    payload: AtomicUsize,
    /// Bytes of memory.
    memory: AtomicUsize,
}

impl Payload {
    fn new(data: IoBuf, usage: &Arc<Usage>) -> Payload {
        let data = match Payload::is_small(&data) {
            true => Data::Compact(Box::from(&data[..])),
            false => Data::Pages(data),
        };
        let payload = Payload { data, usage: usage.clone() };
        usage.payload.fetch_add(payload.as_ref().len(), Ordering::AcqRel);
        usage.memory.fetch_add(payload.memory(), Ordering::AcqRel);
        payload
    }

    /// Whether it fills no more than half of its pages.
    fn is_small(data: &IoBuf) -> bool {
        data.len() <= data.capacity() / 2
    }

    fn memory(&self) -> usize {
        OVERHEAD
            + match &self.data {
                Data::Pages(buf) => buf.capacity(),
                Data::Compact(bytes) => bytes.len(),
            }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        match &self.data {
            Data::Pages(buf) => buf,
            Data::Compact(bytes) => bytes,
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.usage.payload.fetch_sub(self.as_ref().len(), Ordering::AcqRel);
        self.usage.memory.fetch_sub(self.memory(), Ordering::AcqRel);
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
        &self.payload.as_ref().as_ref()[self.part.clone()]
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

/// Dirty extents of one export, and those in flight.
#[derive(Default)]
pub(super) struct WriteCache {
    dirty: BTreeMap<u64, Extent>,
    /// The dirty extents by age: oldest promise, then place.
    ages: BTreeSet<(u64, u64)>,
    /// By place, too.
    in_flight: BTreeMap<u64, Run>,
    usage: Arc<Usage>,
    /// Number of the last write that was accepted.
    last: u64,
    /// Writes up to this number are due now.
    due: u64,
    /// Where the last batch ended.
    cursor: u64,
}

/// Adjacent extents that are written as one piece.
struct Run {
    extents: Vec<Extent>,
    end: u64,
    oldest: u64,
}

/// A batch that has been written and still holds memory.
pub(super) struct Written {
    _runs: BTreeMap<u64, Run>,
}

impl Run {
    fn of(extent: Extent) -> Run {
        Run { end: extent.end(), oldest: extent.oldest, extents: vec![extent] }
    }

    fn push(&mut self, extent: Extent) {
        self.end = extent.end();
        self.oldest = self.oldest.min(extent.oldest);
        self.extents.push(extent);
    }

    fn piece(&self, at: u64) -> Piece {
        let part = |extent: &Extent| Slice::new(extent.payload.clone(), extent.part.clone());
        Piece { at, parts: self.extents.iter().map(part).collect() }
    }
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

    /// The places of its parts, which may overlap.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        self.0.iter().map(|extent| extent.at..extent.end()).collect()
    }

    /// Whether the overlay alone has every byte of a read of `len` bytes.
    pub(super) fn is_all_of(&self, len: usize) -> bool {
        matches!(&self.0[..], [one] if one.part.len() == len)
    }
}

impl WriteCache {
    /// Bytes of payload held: whole payloads, until the last part of each is written or replaced.
    pub(super) fn payload_bytes(&self) -> usize {
        self.usage.payload.load(Ordering::Acquire)
    }

    /// Bytes of memory held for them.
    pub(super) fn memory_bytes(&self) -> usize {
        self.usage.memory.load(Ordering::Acquire)
    }

    /// Bytes of memory that a payload would take.
    pub(super) fn memory_for(data: &IoBuf) -> usize {
        OVERHEAD + if Payload::is_small(data) { data.len() } else { data.capacity() }
    }

    /// Takes the content of a write; returns its number.
    pub(super) fn insert(&mut self, at: u64, data: IoBuf) -> u64 {
        self.last += 1;
        let range = at..at + data.len() as u64;
        let part = 0..data.len();
        let payload = Arc::new(Payload::new(data, &self.usage));
        let oldest = self.cut(&range).unwrap_or(self.last);
        self.put(Extent { at, payload, part, oldest });
        self.last
    }

    /// Number of the last write taken.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Writes up to `number` are due now; returns whether that is news.
    pub(super) fn expedite(&mut self, number: u64) -> bool {
        let news = number > self.due;
        self.due = self.due.max(number);
        news
    }

    /// Whether the promise of some write up to `number` is not yet kept.
    pub(super) fn is_pending(&self, number: u64) -> bool {
        self.ages.first().is_some_and(|(oldest, _)| *oldest <= number)
            || self.in_flight.values().any(|run| run.oldest <= number)
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.in_flight.is_empty()
    }

    /// Whether some extent overlaps the range.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_some() || self.in_flight_in(range).next().is_some()
    }

    /// What a read of `range` must see over what is below.
    pub(super) fn overlay(&self, range: &Range<u64>) -> Overlay {
        let in_flight = self.in_flight_in(range).flat_map(|run| &run.extents);
        let older = in_flight.filter(|extent| extent.overlaps(range));
        let newer = self.overlapping(range).map(|(_, extent)| extent);
        Overlay(older.chain(newer).map(|extent| extent.clip(range)).collect())
    }

    /// Moves what is due, as much as makes a batch, from dirty to in flight: in the order of places,
    /// on from where the last batch ended. What follows something due without a gap goes with it.
    ///
    /// Nothing is taken before the last batch is written or restored: older content must land first.
    pub(super) fn take_batch(&mut self) -> Vec<Piece> {
        assert!(self.in_flight.is_empty(), "one batch at a time");
        let WriteCache { dirty, ages, in_flight, due, cursor, .. } = self;
        let is_due = |oldest| oldest <= *due;
        if !ages.first().is_some_and(|(oldest, _)| is_due(*oldest)) {
            return Vec::new();
        }
        let (mut bytes, end, from) = (0, Cell::new(None), *cursor);
        for part in [(Included(from), Unbounded), (Unbounded, Excluded(from))] {
            let goes = |at: &u64, extent: &mut Extent| {
                let goes = is_due(extent.oldest) || end.get() == Some(*at);
                end.set(goes.then(|| extent.end()));
                goes
            };
            let mut going = dirty.extract_if(part, goes);
            while bytes < BYTES_MAX && in_flight.len() < PIECES_MAX {
                let Some((at, extent)) = going.next() else { break };
                ages.remove(&(extent.oldest, at));
                bytes += extent.part.len() as u64;
                *cursor = extent.end();
                match in_flight.last_entry().filter(|run| run.get().end == at) {
                    Some(mut run) => run.get_mut().push(extent),
                    None => _ = in_flight.insert(at, Run::of(extent)),
                }
            }
        }
        in_flight.iter().map(|(at, run)| run.piece(*at)).collect()
    }

    /// The batch in flight is written. Its memory is free when the result is dropped, which takes a
    /// while.
    #[must_use]
    pub(super) fn complete(&mut self) -> Written {
        Written { _runs: std::mem::take(&mut self.in_flight) }
    }

    /// The batch in flight was not written, or nobody knows: it is dirty again, under what came since.
    pub(super) fn restore(&mut self) {
        let runs = std::mem::take(&mut self.in_flight);
        for extent in runs.into_values().flat_map(|run| run.extents) {
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

    fn in_flight_in(&self, range: &Range<u64>) -> impl Iterator<Item = &Run> {
        let before = self.in_flight.range(..range.start).next_back().map(|(_, run)| run);
        let inside = self.in_flight.range(range.clone()).map(|(_, run)| run);
        before.filter(|run| run.end > range.start).into_iter().chain(inside)
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
            self.take(extent);
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

    fn take(&mut self, extent: &Extent) {
        self.dirty.remove(&extent.at);
        self.ages.remove(&(extent.oldest, extent.at));
    }
}

#[cfg(test)]
mod tests;
