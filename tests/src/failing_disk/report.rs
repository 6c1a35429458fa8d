//! Trials of every mode on every kind of storage, as a table.

use std::fmt::{self, Display, Formatter};

use anyhow::Result;
use serde_json::{Value, json};

use super::plan::{Into, PLANS, ROUNDS_MAX};
use super::trial::{self, Tallies, Tally, Tried};
use super::{Cause, Medium, Target};
use crate::audit::subject::Subject;

/// What is served, why it fails, and by which means our server reaches it.
#[derive(Debug)]
pub struct Storage {
    /// How tables call it.
    pub name: &'static str,
    /// What fails.
    pub medium: Medium,
    /// Why.
    pub cause: Cause,
    /// Words for our server.
    pub args: &'static [&'static str],
}

const FILE: Storage = Storage { name: "file", medium: Medium::File, cause: Cause::Full, args: &[] };
const DEVICE: Storage = Storage { name: "device", medium: Medium::Device, cause: Cause::Full, args: &[] };
const DIRECT: &[&str] = &["--direct"];
const THREADS: &[&str] = &["--engine", "threads"];
const DIRECT_THREADS: &[&str] = &["--direct", "--engine", "threads"];
const ERROR: Cause = Cause::Mapped(Target::Error);
const FLAKEY: Cause = Cause::Mapped(Target::Flakey);

/// Every kind of storage. Those of device mapper are not everywhere.
pub const STORAGES: &[Storage] = &[
    FILE,
    Storage { name: "file --direct", args: DIRECT, ..FILE },
    Storage { name: "file, threads", args: THREADS, ..FILE },
    Storage { name: "file --direct, threads", args: DIRECT_THREADS, ..FILE },
    DEVICE,
    Storage { name: "device --direct", args: DIRECT, ..DEVICE },
    Storage { name: "device, threads", args: THREADS, ..DEVICE },
    Storage { name: "device --direct, threads", args: DIRECT_THREADS, ..DEVICE },
    Storage { name: "file on dm-error", cause: ERROR, ..FILE },
    Storage { name: "file on dm-flakey", cause: FLAKEY, ..FILE },
    Storage { name: "dm-error", cause: ERROR, ..DEVICE },
    Storage { name: "dm-flakey", cause: FLAKEY, ..DEVICE },
    Storage { name: "dm-flakey --direct", cause: FLAKEY, args: DIRECT, ..DEVICE },
];

/// The modes of our server that promise something.
pub const MODES: &[&str] = &["writethrough", "writeback", "early-ack"];
/// Other servers.
pub const PEERS: &[&str] = &["nbdkit", "qemu-nbd"];

/// What came of one server in one mode on one kind of storage.
#[derive(Debug)]
pub struct Cell {
    /// Whose server.
    pub server: String,
    /// Of what.
    pub storage: &'static Storage,
    /// Whether it is ours, which owes the promise.
    pub is_ours: bool,
    /// By plan.
    pub tallies: Tallies,
}

impl Cell {
    /// Makes so many rounds, in as many trials as they need, and tells `seen` after each how many there were.
    pub fn of(
        storage: &'static Storage,
        server: &'static str,
        rounds: u64,
        mut seen: impl FnMut(u64, &Tally),
    ) -> Result<Cell> {
        let (tried, is_ours) = match Subject::named(server) {
            Some(subject) if PEERS.contains(&server) => (Tried::Peer(subject), false),
            _ => (Tried::Ours { mode: server, args: storage.args }, true),
        };
        let name = if is_ours { format!("ours {server}") } else { server.to_owned() };
        let mut cell = Cell { server: name, storage, is_ours, tallies: Tallies::new() };
        let mut made = 0;
        while made < rounds {
            let some = ROUNDS_MAX.min(rounds - made);
            for (plan, tally) in trial::run(storage, tried, some)? {
                cell.tallies.entry(plan).or_default().add(&tally);
            }
            made += some;
            seen(made, &cell.total());
        }
        Ok(cell)
    }

    /// All plans together.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.tallies.values().for_each(|tally| total.add(tally));
        total
    }

    /// What is wrong with it, in a sentence: a false promise, or a disk that failed nobody, or nothing promised at all,
    /// which both prove nothing.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let total = self.total();
        let who = format!("{} on {}", self.server, self.storage.name);
        if total.false_promises > 0 {
            let (lost, all) = (total.false_promises, total.promises);
            let examples = total.examples.join("\n  ");
            return Some(format!("{who}: {lost} of {all} promises are not on the medium:\n  {examples}"));
        }
        let fails = |name: &str| PLANS.iter().any(|plan| plan.name == name && plan.into == Into::BothHalves);
        if let Some((plan, _)) = self.tallies.iter().find(|(plan, tally)| tally.errors == 0 && fails(plan)) {
            return Some(format!(
                "{who}: the disk failed nobody in rounds of \"{plan}\", which prove nothing"
            ));
        }
        (total.promises == 0 && !self.storage.cause.fails_every_flush())
            .then(|| format!("{who}: nothing was promised, which proves nothing"))
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let plans = self.tallies.iter().map(|(plan, tally)| {
            let mut told = told(tally);
            told["plan"] = json!(plan);
            told
        });
        let mut cell = told(&self.total());
        cell["server"] = json!(self.server);
        cell["storage"] = json!(self.storage.name);
        cell["fault"] = json!(self.fault());
        cell["plans"] = plans.collect();
        cell
    }
}

fn told(tally: &Tally) -> Value {
    json!({
        "rounds": tally.rounds,
        "writes": tally.writes,
        "flushes": tally.flushes,
        "flushes_ok": tally.flushes_ok,
        "errors": tally.errors,
        "promises": tally.promises,
        "false_promises": tally.false_promises,
        "examples": tally.examples,
    })
}

/// Cells as a table for people.
pub struct Table<'c>(pub &'c [Cell]);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let heads = ["rounds", "writes", "flushes", "errors", "promises", "false"];
        write!(f, "{:<18} {:<26}", "server", "storage")?;
        heads.iter().try_for_each(|head| write!(f, "{head:>10}"))?;
        writeln!(f)?;
        for cell in self.0 {
            let total = cell.total();
            write!(f, "{:<18} {:<26}", cell.server, cell.storage.name)?;
            let Tally { rounds, writes, flushes, errors, promises, false_promises, .. } = total;
            for number in [rounds, writes, flushes, errors, promises, false_promises] {
                write!(f, "{number:>10}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
