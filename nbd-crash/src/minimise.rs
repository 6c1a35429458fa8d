//! Which of the writes that a state has lost matter: a set without which the promise is still broken, all others being
//! kept, and of which none can be left out (after Junker's QuickXplain, AAAI 2004).

use std::sync::Arc;

use serde::Serialize;

use crate::contract::{Contract, Reason};
use crate::history::{Content, History};
use crate::oracle::Oracle;
use crate::state::{self, Kept, Part};
use crate::walk::Walk;

/// Judgements that one violation may cost.
const CHECKS_MAX: usize = 64;

/// What makes a state break a promise.
#[derive(Debug, Clone, Serialize)]
pub struct Guilt {
    /// The smallest state that was found: its name.
    pub state: String,
    /// What is wrong with it.
    pub faults: Vec<String>,
    /// The writes whose loss matters.
    pub lost: Vec<Lost>,
    /// How many judgements it took to find them.
    pub checks: usize,
}

/// A write that was lost, or partly.
#[derive(Debug, Clone, Serialize)]
pub struct Lost {
    /// Its sequence number.
    pub seq: u64,
    /// The connection.
    pub connection: u16,
    /// Its first byte.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// What it was and who said that it would not be lost.
    pub words: String,
}

/// Finds what matters in a state that breaks a promise.
pub fn minimise(
    history: &History,
    contract: Contract,
    walk: &mut Walk,
    kept: &[Kept],
    oracle: &mut dyn Oracle,
) -> anyhow::Result<Guilt> {
    let spec = Contract::Nbd.stability(history);
    let is_whole = |write: usize| kept.iter().any(|kept| kept.write == write && kept.part == Part::All);
    let (time, volatile) = (walk.time, walk.volatile.clone());
    let mut search = Search { walk, kept, oracle, checks: 0, faults: Vec::new() };
    let mut lost: Vec<usize> = volatile.iter().copied().filter(|write| !is_whole(*write)).collect();
    // What the protocol promised is suspected first.
    let promised: Vec<usize> = lost.iter().copied().filter(|write| spec.is_stable(*write, time)).collect();
    if promised.len() < lost.len() && !promised.is_empty() && search.is_guilty(&promised)? {
        lost = promised;
    }
    search.shrink(&mut lost)?;
    if search.faults.is_empty() {
        // Nothing could be left out, or nothing was lost.
        search.is_guilty(&lost)?;
    }
    let smallest = search.without(&lost);
    Ok(Guilt {
        state: state::name(history, contract, time, &volatile, &smallest),
        lost: lost.iter().map(|write| describe(history, *write, spec.since[*write], time)).collect(),
        faults: search.faults,
        checks: search.checks,
    })
}

struct Search<'s> {
    walk: &'s mut Walk,
    kept: &'s [Kept],
    oracle: &'s mut dyn Oracle,
    checks: usize,
    /// Of the last guilty one.
    faults: Vec<String>,
}

impl Search<'_> {
    /// All that could be kept but for some; those that were torn stay so.
    fn without(&self, lost: &[usize]) -> Vec<Kept> {
        let torn = |write: usize| self.kept.iter().find(|kept| kept.write == write).copied();
        let all = self.walk.volatile.iter();
        all.filter_map(|write| if lost.contains(write) { torn(*write) } else { Some(Kept::whole(*write)) })
            .collect()
    }

    fn is_guilty(&mut self, lost: &[usize]) -> anyhow::Result<bool> {
        self.checks += 1;
        let kept = self.without(lost);
        let image = self.walk.state(&kept)?;
        let faults = self.oracle.judge(self.walk.time, &Arc::new(image))?;
        let guilty = !faults.is_empty();
        if guilty {
            self.faults = faults;
        }
        Ok(guilty)
    }

    /// Leaves out what can be left out. The shortest beginning that is enough ends with a write that matters; what else
    /// does is before it, and is found in the same way, until what was found is enough alone. Each takes as many
    /// judgements as the number of writes has binary digits.
    fn shrink(&mut self, lost: &mut Vec<usize>) -> anyhow::Result<()> {
        let mut pool = lost.clone();
        let mut found: Vec<usize> = Vec::new();
        while !pool.is_empty() && self.checks < CHECKS_MAX {
            let (mut too_few, mut enough) = (0, pool.len());
            while enough - too_few > 1 {
                let middle = usize::midpoint(too_few, enough);
                let some: Vec<usize> = pool[..middle].iter().chain(&found).copied().collect();
                if self.is_guilty(&some)? { enough = middle } else { too_few = middle }
            }
            found.push(pool[enough - 1]);
            pool.truncate(enough - 1);
            *lost = pool.iter().chain(&found).copied().collect();
            if !pool.is_empty() && self.is_guilty(&found)? {
                lost.clone_from(&found);
                break;
            }
        }
        lost.sort_unstable();
        Ok(())
    }
}

fn describe(history: &History, index: usize, since: Option<(usize, Reason)>, crash: usize) -> Lost {
    let write = &history.writes[index];
    let what = match write.content {
        Content::Data(_) => "WRITE",
        Content::Zero => "WRITE of zeroes",
        Content::Nothing => "TRIM",
    };
    let seq_at = |time: usize| history.events[time].seq;
    let why = match since {
        Some((at, Reason::Flush(flush))) => format!(
            "the FLUSH received as record {} and answered as record {} covers it",
            history.flushes[flush].seq,
            seq_at(at)
        ),
        Some((at, Reason::Fua)) => format!("it had FUA and was answered as record {}", seq_at(at)),
        Some((at, Reason::Answered)) => format!("it was answered as record {}", seq_at(at)),
        None => "no FLUSH covers it, and it had no FUA".to_owned(),
    };
    let why = match since {
        Some((at, _)) if at >= crash => format!("nothing had made it durable yet: {why}"),
        _ => why,
    };
    let (offset, length) = (write.offset, write.length);
    let words =
        format!("{what} {} of {length} bytes at {offset}, connection {}: {why}", write.seq, write.connection);
    Lost { seq: write.seq, connection: write.connection, offset, length, words }
}
