//! Judges the bytes themselves, without a file system: what was made durable by the protocol's contract must be there,
//! or something newer.
//!
//! The contract may be that of another recording: what a server promised its clients, while the states are those of
//! the storage that it writes to. Both recordings must be of the same host's clock.

use std::collections::HashSet;
use std::sync::Arc;

use super::Oracle;
use crate::contract::Contract;
use crate::history::{Content, History};
use crate::image::{Base, Image, PAGE, SECTOR, SECTOR_LEN};
use crate::walk::Walk;

/// The judge.
pub struct RawOracle {
    /// The recording of the states.
    states: Arc<History>,
    /// That of the promises, and a walk along it.
    front: Arc<History>,
    promised: Walk,
}

impl RawOracle {
    /// The states are those of `states`, the promises those of `front`, often the same.
    pub fn new(states: Arc<History>, front: Arc<History>, base: Base) -> RawOracle {
        let stability = Arc::new(Contract::Nbd.stability(&front));
        let promised = Walk::new(front.clone(), stability, base);
        RawOracle { states, front, promised }
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
        let front = self.front.clone();
        let mut sectors: HashSet<u64> = HashSet::new();
        let touched = self.promised.durable.pages.keys().chain(image.every_page());
        for page in touched.copied().collect::<HashSet<_>>() {
            sectors.extend((0..PAGE / SECTOR).map(|sector| page * (PAGE / SECTOR) + sector));
        }
        let mut wrong: Vec<_> = Vec::new();
        for sector in sectors {
            if !self.may_be(&front, sector, image)? {
                wrong.push(sector);
            }
        }
        wrong.sort_unstable();
        Ok(spans(&wrong).map(|(first, count)| self.fault(&front, first, count)).collect())
    }

    fn promises(&mut self, time: usize) -> anyhow::Result<u64> {
        Ok(self.front_time(time) as u64)
    }
}

impl RawOracle {
    /// Whether a sector may have the content that it has in the state.
    fn may_be(&self, front: &History, sector: u64, image: &Image) -> std::io::Result<bool> {
        let durable = &self.promised.durable;
        let (mut found, mut due) = ([0; SECTOR_LEN], [0; SECTOR_LEN]);
        image.read(sector * SECTOR, &mut found)?;
        durable.read(sector * SECTOR, &mut due)?;
        if found == due {
            return Ok(true);
        }
        let from = durable.from(sector);
        let trimmed = |write: usize| front.writes[write].content == Content::Nothing;
        if from.checked_sub(1).is_some_and(|write| trimmed(usize::try_from(write).expect("an index"))) {
            return Ok(true);
        }
        let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
        let newer = self.promised.volatile.iter().copied().filter(|write| {
            let (index, write) = (*write as u64, &front.writes[*write]);
            index >= from && write.offset < end && write.end() > start
        });
        // Byte by byte, because writes need not cover sectors whole.
        let mut allowed: Vec<bool> = found.iter().zip(&due).map(|(found, due)| found == due).collect();
        for index in newer {
            if trimmed(index) {
                return Ok(true);
            }
            let write = &front.writes[index];
            for at in start.max(write.offset)..end.min(write.end()) {
                let place = usize::try_from(at - start).expect("less than a sector");
                let byte = match &write.content {
                    Content::Data(data) => {
                        data[usize::try_from(at - write.offset).expect("data is in memory")]
                    }
                    _ => 0,
                };
                allowed[place] |= byte == found[place];
            }
        }
        Ok(allowed.iter().all(|allowed| *allowed))
    }

    fn fault(&self, front: &History, first: u64, count: u64) -> String {
        let due = match self.promised.durable.from(first).checked_sub(1) {
            None => "the content from before".to_owned(),
            Some(index) => {
                let write = &front.writes[usize::try_from(index).expect("an index")];
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
