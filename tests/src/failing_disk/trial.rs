//! One failing disk, one server, some rounds. Then the power is cut, and whatever was answered as durable must be on
//! the medium. An error is always an honest answer here: only a success can be false.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;
use common::proto::{CommandType, WireError};

use super::plan::{AFTER_CLEAN_START, IsFua, LEN, PLANS, Plan, ROUNDS_MAX, Request};
use super::report::Storage;
use super::served::Served;
use super::{FailingDisk, HALF};
use crate::audit::subject::Subject;
use crate::client::{Client, PLAIN};

/// Connections of the rounds that use several.
const CONNECTIONS: usize = 16;

/// Whose server is tried, and how.
#[derive(Debug, Clone, Copy)]
pub enum Tried {
    /// Ours, in a durability mode and with more words on the command line.
    Ours {
        /// `--durability`.
        mode: &'static str,
        /// More words.
        args: &'static [&'static str],
    },
    /// A peer.
    Peer(&'static Subject),
}

/// What came of the rounds of one plan.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Rounds.
    pub rounds: u64,
    /// Requests of the write class.
    pub writes: u64,
    /// FLUSHes.
    pub flushes: u64,
    /// Error replies.
    pub errors: u64,
    /// FLUSHes that were answered OK.
    pub flushes_ok: u64,
    /// Requests whose durability was promised.
    pub promises: u64,
    /// Those that were then not on the medium.
    pub false_promises: u64,
    /// Their number, for the first of them: what was promised where, and by whom.
    pub examples: Vec<String>,
}

/// Examples that are kept.
const EXAMPLES_MAX: usize = 5;

impl Tally {
    /// Both together.
    pub fn add(&mut self, other: &Tally) {
        self.rounds += other.rounds;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.errors += other.errors;
        self.flushes_ok += other.flushes_ok;
        self.promises += other.promises;
        self.false_promises += other.false_promises;
        self.examples.extend(other.examples.iter().cloned());
        self.examples.truncate(EXAMPLES_MAX);
    }
}

/// What came of each plan, by its name.
pub type Tallies = BTreeMap<&'static str, Tally>;

/// Makes a disk, serves it, makes so many rounds (at most [`ROUNDS_MAX`]), cuts the power and looks.
pub fn run(storage: &Storage, tried: Tried, rounds: u64) -> Result<Tallies> {
    let disk = FailingDisk::failing_by(storage.medium, storage.cause)?;
    let (served, is_writethrough) = match tried {
        Tried::Ours { mode, args } => {
            let words = [&["--durability", mode], args].concat();
            (Served::ours(&disk, &words), mode == "writethrough")
        }
        Tried::Peer(subject) => (Served::peer(&disk, subject)?, subject.is_writethrough()),
    };
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| served.connect()).collect();
    let mut trial = Trial { served, is_writethrough, tallies: Tallies::new(), promises: Vec::new() };
    for round in 0..rounds.min(ROUNDS_MAX) {
        let turn = usize::try_from(round)?;
        let plan = if turn == 0 { &AFTER_CLEAN_START } else { &PLANS[turn % PLANS.len()] };
        // Every other time a plan comes up it has one connection.
        let count = if (turn / PLANS.len()).is_multiple_of(2) { CONNECTIONS } else { 1 };
        trial.round(plan, round, &mut clients[..count]);
    }
    // While the server runs: its end would give the medium what a power cut takes.
    let medium = disk.after_power_cut()?;
    let Trial { served, mut tallies, promises, .. } = trial;
    for Promise { request, by, plan } in promises {
        let tally = tallies.entry(plan).or_default();
        tally.promises += 1;
        if !request.is_on(&medium) {
            tally.false_promises += 1;
            let half = if request.at < HALF { "good" } else { "failing" };
            tally
                .examples
                .push(format!("{:?} at {} ({half} half), promised by {by}", request.act, request.at));
            tally.examples.truncate(EXAMPLES_MAX);
        }
    }
    if let Served::Ours { server, .. } = &served {
        server.signal(nix::sys::signal::Signal::SIGKILL);
    }
    drop((clients, served, disk));
    Ok(tallies)
}

/// A request that was answered as durable.
struct Promise {
    request: Request,
    by: &'static str,
    plan: &'static str,
}

/// One request of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Change(Request, IsFua),
    Flush,
}

struct Trial {
    served: Served,
    is_writethrough: bool,
    tallies: Tallies,
    promises: Vec<Promise>,
}

impl Trial {
    fn round(&mut self, plan: &'static Plan, round: u64, clients: &mut [Client]) {
        let tally = self.tallies.entry(plan.name).or_default();
        tally.rounds += 1;
        let requests: Vec<Request> =
            (0..plan.writes).map(|number| Request::of(plan, round, number)).collect();
        let (first, others) = requests.split_at(plan.plain);
        let (with_fua, beside) = others.split_at(others.len() - plan.plain_beside);
        let change = |is_fua| move |request: &Request| Job::Change(*request, is_fua);
        let mut steps = [first.iter().map(change(IsFua::No)).collect(), Vec::new(), vec![Job::Flush]];
        // A plain write is the first to be sent, flushes come between those with FUA.
        steps[1].extend(beside.iter().map(change(IsFua::No)));
        let mut flushes = (0..plan.flushes).map(|_| Job::Flush);
        for job in with_fua.iter().map(change(IsFua::Yes)) {
            steps[1].push(job);
            steps[1].extend(flushes.next());
        }
        steps[1].extend(flushes);

        let mut acknowledged = Vec::new();
        let mut promised: Vec<(Request, &'static str)> = Vec::new();
        let mut failed = false;
        for jobs in steps {
            if failed && !self.served.remembers_losses() {
                acknowledged.clear();
            }
            let answers = all_at_once(&jobs, clients);
            // A FLUSH covers what was acknowledged before it was sent.
            let covered = acknowledged.clone();
            for (job, error) in answers {
                let ok = error == WireError::OK;
                failed |= !ok;
                tally.errors += u64::from(!ok);
                match job {
                    Job::Change(request, is_fua) => {
                        tally.writes += 1;
                        if ok && (self.is_writethrough || is_fua == IsFua::Yes) {
                            promised.push((request, "its own reply"));
                        }
                        acknowledged.extend(ok.then_some(request));
                    }
                    Job::Flush => {
                        tally.flushes += 1;
                        tally.flushes_ok += u64::from(ok);
                        promised.extend(covered.iter().filter(|_| ok).map(|request| (*request, "FLUSH")));
                    }
                }
            }
        }
        let mut seen = HashSet::new();
        promised.retain(|(request, _)| seen.insert(request.tag));
        let promises = promised.into_iter().map(|(request, by)| Promise { request, by, plan: plan.name });
        self.promises.extend(promises);
        if failed {
            self.served.clear_poison();
        }
    }
}

/// Sends everything, spread over the connections, before it takes the first reply.
fn all_at_once(jobs: &[Job], clients: &mut [Client]) -> Vec<(Job, WireError)> {
    let mut sent = HashMap::new();
    for (number, job) in jobs.iter().enumerate() {
        let place = number % clients.len();
        let client = &mut clients[place];
        let cookie = match job {
            Job::Flush => client.send(CommandType::FLUSH, PLAIN, 0, 0),
            Job::Change(request, is_fua) => match request.command(*is_fua) {
                (CommandType::WRITE, flags) => client.send_write(flags, request.at, &request.data()),
                (command, flags) => client.send(command, flags, request.at, LEN_ON_WIRE),
            },
        };
        sent.insert((place, cookie), *job);
    }
    let mut answers = Vec::new();
    for (place, client) in clients.iter_mut().enumerate() {
        while client.outstanding() > 0 {
            let reply = client.reply();
            answers.push((sent[&(place, reply.cookie)], reply.error));
        }
    }
    answers
}

/// The same as [`LEN`](super::plan::LEN).
#[allow(clippy::cast_possible_truncation, reason = "requests are short")]
const LEN_ON_WIRE: u32 = LEN as u32;
