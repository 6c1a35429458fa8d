//! What a device promises: which writes are durable when. The protocol's promise is one; the others are those of
//! servers that are better or worse than it demands.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::Serialize;

use crate::history::History;

/// What a device promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contract {
    /// The protocol's: FLUSH makes durable what was answered before it was received, on any connection, and FUA its
    /// own write
    Nbd,
    /// Every write is durable once it is answered
    Writethrough,
    /// Broken: nothing is ever durable
    Unsafe,
    /// Broken: FUA is ignored
    NoFua,
    /// Broken: FLUSH is ignored
    NoFlush,
    /// Broken: FLUSH makes durable only what was answered before the FLUSH before it
    LateFlush,
    /// Broken: FLUSH covers the writes of its own connection only
    OwnConnection,
}

impl Contract {
    /// Every one that keeps less than the protocol demands.
    pub const BROKEN: [Contract; 5] =
        [Contract::Unsafe, Contract::NoFua, Contract::NoFlush, Contract::LateFlush, Contract::OwnConnection];

    /// What it is called on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }

    /// Why, and since when, each write is durable.
    pub fn stability(self, history: &History) -> Stability {
        let mut since: Vec<Option<(usize, Reason)>> = vec![None; history.writes.len()];
        if matches!(self, Contract::Nbd | Contract::NoFua | Contract::LateFlush | Contract::OwnConnection) {
            self.flushes(history, &mut since);
        }
        for (write, since) in history.writes.iter().zip(&mut since) {
            let alone = match self {
                Contract::Writethrough => Some(Reason::Answered),
                Contract::Unsafe | Contract::NoFua => None,
                _ => write.fua.then_some(Reason::Fua),
            };
            if let (Some(reason), Some(at)) = (alone, write.acknowledged()) {
                *since = Some((at, reason));
            }
        }
        let mut at: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, since) in since.iter().enumerate() {
            if let Some((time, _)) = since {
                at.entry(*time).or_default().push(index);
            }
        }
        Stability { since, at }
    }

    /// What is durable by flushes: of all that cover a write, the one that is answered first counts.
    fn flushes(self, history: &History, since: &mut [Option<(usize, Reason)>]) {
        let mut flushes: Vec<_> = (0..history.flushes.len())
            .filter(|index| history.flushes[*index].acknowledged().is_some())
            .collect();
        flushes.sort_by_key(|index| history.flushes[*index].acknowledged());
        let received = |index: usize| history.flushes[index].received;
        for (index, write) in history.writes.iter().enumerate() {
            let Some(answered) = write.acknowledged() else { continue };
            let covers = |flush: &usize| {
                let begins = match self {
                    // The reception of the flush before this one.
                    Contract::LateFlush => flush.checked_sub(1).map(received),
                    _ => Some(received(*flush)),
                };
                let own =
                    self != Contract::OwnConnection || history.flushes[*flush].connection == write.connection;
                own && begins.is_some_and(|begins| answered < begins)
            };
            // Flushes that were answered before the write was are none of these.
            let from =
                flushes.partition_point(|flush| history.flushes[*flush].acknowledged() < Some(answered));
            let first = flushes[from..].iter().find(|flush| covers(flush));
            since[index] = first.map(|flush| {
                (history.flushes[*flush].acknowledged().expect("filtered"), Reason::Flush(*flush))
            });
        }
    }
}

/// Since when each write is durable.
pub struct Stability {
    /// By write; the time is that of the event with which it became so.
    pub since: Vec<Option<(usize, Reason)>>,
    /// By event: the writes that become durable with it, in the order of receipt.
    pub at: BTreeMap<usize, Vec<usize>>,
}

impl Stability {
    /// Whether a write is durable at a time.
    pub fn is_stable(&self, write: usize, time: usize) -> bool {
        self.since[write].is_some_and(|(since, _)| since < time)
    }
}

/// Why a write is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A flush, by its index, covered it.
    Flush(usize),
    /// It had FUA.
    Fua,
    /// It was answered.
    Answered,
}
