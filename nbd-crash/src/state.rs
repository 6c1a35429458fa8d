//! One state that a crash could leave: a time, and which of the writes that could be lost were kept. Its name says all
//! of it, so that it can be had again.
//!
//! A name is `CONTRACT@TIME:KEPT`. TIME is the sequence number of the last record before the crash. KEPT is `all`,
//! `none`, a list of what was kept, or after a `-` a list of what was lost; its items are sequence numbers of writes,
//! one that was torn with the sectors that were kept: `17<3` the first three, `17/5` those whose bits are set in the
//! hexadecimal number.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use crate::contract::Contract;
use crate::history::History;
use crate::image::{Image, Rewrites};

/// A write that was kept, or how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kept {
    /// Its index.
    pub write: usize,
    /// How much.
    pub part: Part,
}

/// How much of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    All,
    /// Its first sectors.
    First(u64),
    /// Those of its first 64 sectors whose bit is set, and none of the others.
    Bits(u64),
}

impl Part {
    fn has(self, sector: u64) -> bool {
        match self {
            Part::All => true,
            Part::First(count) => sector < count,
            Part::Bits(bits) => sector < 64 && bits & 1 << sector != 0,
        }
    }
}

impl Kept {
    /// All of a write.
    pub fn whole(write: usize) -> Kept {
        Kept { write, part: Part::All }
    }
}

/// The content of the export in a state: what is durable and what was kept.
pub(crate) fn content(
    durable: &Arc<Image>,
    history: &History,
    kept: &[Kept],
    rewrites: &mut Rewrites,
) -> std::io::Result<Image> {
    let mut image = durable.over();
    for Kept { write, part } in kept {
        image.apply(*write, &history.writes, |sector| part.has(sector), rewrites)?;
    }
    Ok(image)
}

/// The state's name.
pub fn name(history: &History, contract: Contract, time: usize, volatile: &[usize], kept: &[Kept]) -> String {
    let mut name = format!("{}@{}:", contract.name(), history.seq_before(time));
    let torn = kept.iter().any(|kept| kept.part != Part::All);
    let seq = |write: usize| history.writes[write].seq;
    if kept.is_empty() {
        name += "none";
    } else if !torn && kept.len() == volatile.len() {
        name += "all";
    } else if !torn && kept.len() > volatile.len() / 2 {
        let lost = volatile.iter().filter(|write| kept.iter().all(|kept| kept.write != **write));
        name += "-";
        name += &lost.map(|write| seq(*write).to_string()).collect::<Vec<_>>().join(",");
    } else {
        for (number, Kept { write, part }) in kept.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let seq = seq(*write);
            let written = match part {
                Part::All => write!(name, "{comma}{seq}"),
                Part::First(count) => write!(name, "{comma}{seq}<{count}"),
                Part::Bits(bits) => write!(name, "{comma}{seq}/{bits:x}"),
            };
            written.expect("a text takes text");
        }
    }
    name
}

/// A name that was typed: the contract, the time, and the rest, which needs the writes that could be lost then.
pub struct Named<'n> {
    /// What the device promises.
    pub contract: Contract,
    /// When it crashes.
    pub time: usize,
    kept: &'n str,
}

impl<'n> Named<'n> {
    /// Reads the first half of a name.
    pub fn parse(history: &History, name: &'n str) -> anyhow::Result<Named<'n>> {
        let parts = || {
            let (contract, rest) = name.split_once('@')?;
            let (seq, kept) = rest.split_once(':')?;
            Some((contract, seq, kept))
        };
        let (contract, seq, kept) =
            parts().with_context(|| format!("{name:?} names no state; write for example nbd@120:all"))?;
        let contract = Contract::from_str(contract, false).map_err(|error| anyhow::anyhow!(error))?;
        let seq = seq.parse().with_context(|| format!("{seq:?} is no sequence number"))?;
        let time = if seq == 0 { Some(0) } else { history.after(seq) };
        Ok(Named { contract, time: time.with_context(|| format!("there is no record {seq}"))?, kept })
    }

    /// Reads the second half, once it is known what could be lost.
    pub fn kept(&self, history: &History, volatile: &[usize]) -> anyhow::Result<Vec<Kept>> {
        let listed = |list: &str| {
            list.split(',').map(|item| one(history, volatile, item)).collect::<anyhow::Result<Vec<_>>>()
        };
        Ok(match self.kept {
            "all" => volatile.iter().copied().map(Kept::whole).collect(),
            "none" => Vec::new(),
            list => match list.strip_prefix('-') {
                Some(list) => {
                    let lost = listed(list)?;
                    let kept = volatile.iter().filter(|write| lost.iter().all(|lost| lost.write != **write));
                    kept.copied().map(Kept::whole).collect()
                }
                None => {
                    let mut kept = listed(list)?;
                    kept.sort_by_key(|kept| kept.write);
                    kept
                }
            },
        })
    }
}

fn one(history: &History, volatile: &[usize], item: &str) -> anyhow::Result<Kept> {
    let (seq, part) = if let Some((seq, count)) = item.split_once('<') {
        (seq, Part::First(count.parse().with_context(|| format!("{count:?} is no number of sectors"))?))
    } else if let Some((seq, bits)) = item.split_once('/') {
        (seq, Part::Bits(u64::from_str_radix(bits, 16).with_context(|| format!("{bits:?} are no bits"))?))
    } else {
        (item, Part::All)
    };
    let number = seq.parse().with_context(|| format!("{seq:?} is no sequence number"))?;
    let Some(write) = history.write(number) else { bail!("record {number} is no write") };
    ensure!(volatile.contains(&write), "write {number} is durable at that time, hidden, or not there yet");
    Ok(Kept { write, part })
}
