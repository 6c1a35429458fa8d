//! Judges the bytes themselves, without a file system: what was made durable by the protocol's contract must be there,
//! or something newer.
//!
//! The contract may be that of another recording: what a server promised its clients, while the states are those of
//! the storage that it writes to. Both recordings must be of the same host's clock.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::Oracle;
use crate::contract::{Contract, Stability};
use crate::history::{Content, History, Write};
use crate::image::{self, Base, Image, SECTOR, SECTOR_LEN, SECTORS, Spread};
use crate::walk::Walk;

/// The judge.
pub struct RawOracle {
    /// The recording of the states.
    states: Arc<History>,
    /// That of the promises, and a walk along it.
    front: Arc<History>,
    stability: Arc<Stability>,
    promised: Walk,
    base: Base,
    /// The writes of `front` that touch a sector, in the order of receipt.
    by_sector: HashMap<u64, Vec<u32>>,
    /// Those that touch very many: a TRIM often covers the whole device.
    wide: Vec<u32>,
    known: Known,
}

/// What the states of one time have in common, so that each costs what is new in it.
#[derive(Default)]
struct Known {
    /// The time of the promises, and the hash of what the states were made over.
    of: Option<(usize, u64)>,
    /// Pages that differ from what was made durable last, unless the state has them otherwise.
    differing: Vec<u64>,
    /// Whether a sector may have a content, by the hash of both.
    may_be: HashMap<u64, bool, BuildHasherDefault<Spread>>,
}

/// Sectors of a write that is looked for among all rather than under each of them: 8 MiB.
const WIDE_MIN: u64 = 16_384;

impl RawOracle {
    /// The states are those of `states`, the promises those of `front`, often the same.
    pub fn new(states: Arc<History>, front: Arc<History>, base: Base) -> RawOracle {
        let stability = Arc::new(Contract::Nbd.stability(&front));
        let promised = Walk::new(front.clone(), stability.clone(), base.clone());
        let mut by_sector: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut wide = Vec::new();
        for (index, write) in (0..).zip(&front.writes) {
            let first = write.offset / SECTOR;
            if write.sectors() > WIDE_MIN {
                wide.push(index);
                continue;
            }
            (first..first + write.sectors())
                .for_each(|sector| by_sector.entry(sector).or_default().push(index));
        }
        let known = Known::default();
        RawOracle { states, front, stability, promised, base, by_sector, wide, known }
    }

    /// The time in the recording of promises: what had happened there when the other had come so far.
    fn front_time(&self, time: usize) -> usize {
        if Arc::ptr_eq(&self.states, &self.front) {
            return time;
        }
        let Some(last) = time.checked_sub(1) else { return 0 };
        let now = self.states.header.began_ns + self.states.events[last].at_ns;
        self.front.events.partition_point(|event| self.front.header.began_ns + event.at_ns <= now)
    }
}

impl Oracle for RawOracle {
    fn judge(&mut self, time: usize, image: &Arc<Image>) -> anyhow::Result<Vec<String>> {
        self.promised.go(self.front_time(time))?;
        self.meet(image)?;
        let touched: BTreeSet<u64> = self.known.differing.iter().chain(image.pages.keys()).copied().collect();
        let mut wrong = Vec::new();
        for page in touched {
            let (found, due) = (image.sums(page)?, self.promised.durable.sums(page)?);
            let sectors = (page * SECTORS as u64..).zip(found.into_iter().zip(due));
            for (sector, (found, _)) in sectors.filter(|(_, (found, due))| found != due) {
                let content = image::mix(sector, found);
                let may_be = match self.known.may_be.get(&content) {
                    Some(known) => *known,
                    None => self.may_be(sector, image)?,
                };
                self.known.may_be.insert(content, may_be);
                if !may_be {
                    wrong.push(sector);
                }
            }
        }
        Ok(spans(&wrong).map(|(first, count)| self.fault(first, count)).collect())
    }

    fn promises(&mut self, time: usize) -> anyhow::Result<u64> {
        Ok(self.front_time(time) as u64)
    }
}

impl RawOracle {
    /// Finds out what is common to the states of now, unless `image` is one more of them.
    fn meet(&mut self, image: &Arc<Image>) -> anyhow::Result<()> {
        let of = image.below().map(|below| (self.promised.time, below.hash));
        if of.is_some() && self.known.of == of {
            return Ok(());
        }
        let (durable, common) = (&self.promised.durable, image.below().unwrap_or(image));
        let mut differing = BTreeSet::new();
        for page in durable.pages.keys().chain(common.every_page()) {
            if common.sums(*page)? != durable.sums(*page)? {
                differing.insert(*page);
            }
        }
        self.known = Known { of, differing: differing.into_iter().collect(), may_be: HashMap::default() };
        Ok(())
    }

    /// Whether a sector, which is not what was made durable last, may be what it is in the state: what is left by a write that no durable one has
    /// overwritten. One overwrites another only if that had been answered before it was received; those that were on
    /// their way together may have come in either order.
    fn may_be(&self, sector: u64, image: &Image) -> std::io::Result<bool> {
        let mut found = [0; SECTOR_LEN];
        image.read(sector * SECTOR, &mut found)?;
        let none = Vec::new();
        let indices = self.by_sector.get(&sector).unwrap_or(&none);
        let start = sector * SECTOR;
        let touches = |write: &Write| write.offset < start + SECTOR && write.end() > start;
        let wide = || self.wide.iter().filter(|index| touches(&self.front.writes[**index as usize]));
        let writes = || {
            let indices = indices.iter().chain(wide()).map(|index| *index as usize);
            indices.filter(|index| self.is_received(*index))
        };
        let mut before = [0; SECTOR_LEN];
        Image::new(self.base.clone()).read(start, &mut before)?;
        if self.is_of_one(sector, &found, &before, &writes().collect::<Vec<_>>()) {
            return Ok(true);
        }
        // Byte by byte, because writes need not cover sectors whole.
        let places = |write: &Write| {
            let place = |at: u64| usize::try_from(at - start).expect("less than a sector");
            place(start.max(write.offset))..place((start + SECTOR).min(write.end()))
        };
        // When the last durable write to each was received.
        let mut durable: [Option<usize>; SECTOR_LEN] = [None; SECTOR_LEN];
        for index in writes().filter(|index| self.is_stable(*index)) {
            let write = &self.front.writes[index];
            durable[places(write)].iter_mut().for_each(|last| *last = (*last).max(Some(write.received)));
        }
        let mut allowed = [false; SECTOR_LEN];
        for place in 0..SECTOR_LEN {
            allowed[place] = durable[place].is_none() && before[place] == found[place];
        }
        for write in writes().map(|index| &self.front.writes[index]) {
            for place in places(write) {
                let is_it = match &write.content {
                    Content::Nothing => true,
                    Content::Zero => found[place] == 0,
                    Content::Data(data) => {
                        let skip = start + place as u64 - write.offset;
                        data[usize::try_from(skip).expect("data is in memory")] == found[place]
                    }
                };
                allowed[place] |= is_it && !self.is_overwritten(write, durable[place]);
            }
        }
        Ok(allowed.iter().all(|allowed| *allowed))
    }

    /// Whether a sector, each of whose writes covers all of it, is what one of them made of it, or what was there before:
    /// most sectors are.
    fn is_of_one(
        &self,
        sector: u64,
        found: &[u8; SECTOR_LEN],
        before: &[u8; SECTOR_LEN],
        writes: &[usize],
    ) -> bool {
        let all = || writes.iter().map(|index| &self.front.writes[*index]);
        if !all().all(|write| write.covers(sector)) {
            return false;
        }
        let stable = writes.iter().filter(|index| self.is_stable(**index));
        let last = stable.map(|index| self.front.writes[*index].received).max();
        let is_it = |write: &Write| match &write.content {
            Content::Nothing => true,
            Content::Zero => *found == [0; SECTOR_LEN],
            Content::Data(data) => {
                let skip = usize::try_from(sector * SECTOR - write.offset).expect("data is in memory");
                data[skip..][..SECTOR_LEN] == *found
            }
        };
        (last.is_none() && before == found) || all().any(|it| is_it(it) && !self.is_overwritten(it, last))
    }

    /// Whether nothing is left of a write where the last durable one was received at a time. What was not answered yet is
    /// overwritten by nobody.
    fn is_overwritten(&self, write: &Write, last: Option<usize>) -> bool {
        let answered = write.answered.map(|(at, _)| at).filter(|at| *at < self.promised.time);
        answered.is_some_and(|at| last.is_some_and(|last| last > at))
    }

    fn is_stable(&self, write: usize) -> bool {
        self.stability.is_stable(write, self.promised.time)
    }

    fn is_received(&self, write: usize) -> bool {
        self.front.writes[write].received < self.promised.time
    }

    fn fault(&self, first: u64, count: u64) -> String {
        let due = match self.promised.durable.from(first).checked_sub(1) {
            None => "the content from before".to_owned(),
            Some(index) => {
                let write = &self.front.writes[usize::try_from(index).expect("an index")];
                format!("write {} or something newer", write.seq)
            }
        };
        format!("bytes {} to {}: not {due}, which was durable", first * SECTOR, (first + count) * SECTOR)
    }
}

/// Neighbours brought together: the first, and how many.
fn spans(sorted: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    sorted.chunk_by(|one, next| one + 1 == *next).map(|span| (span[0], span.len() as u64))
}
