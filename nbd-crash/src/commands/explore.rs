//! `nbd-crash explore`.

use std::fs;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{base, open};
use crate::cli::{Allowance, Explore, Judge};
use crate::explore::{Budget, Exploration, Outcome};
use crate::history::History;
use crate::image::Base;
use crate::oracle::Oracle;
use crate::oracle::command::CommandOracle;
use crate::oracle::compare::CompareOracle;
use crate::oracle::ext4::Ext4Oracle;
use crate::oracle::mount::MountOracle;
use crate::oracle::raw::RawOracle;
use crate::report;
use crate::states::Choice;

/// How often progress is told to who looks at a terminal, and to a log.
const TELL_EVERY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

type Factory = Box<dyn Fn() -> anyhow::Result<Box<dyn Oracle>> + Sync>;

pub(super) fn run(explore: &Explore) -> anyhow::Result<ExitCode> {
    let history = open(&explore.log)?;
    ensure!(
        explore.front.is_none() || explore.oracle == Judge::Raw,
        "promises of another recording are judged by the raw oracle only"
    );
    let base = base(explore.base.as_deref())?;
    let oracle = factory(explore, &history, &base)?;
    let exploration = Exploration {
        base,
        contract: explore.contract,
        choice: Choice { seed: explore.seed, unit: explore.unit, random: explore.random },
        only_after_marks: explore.oracle.needs_marks(),
        budget: match explore.budget {
            Allowance::Time(time) => Budget { states: u64::MAX, time },
            Allowance::States(states) => Budget { states, time: Duration::MAX },
        },
        violations_max: explore.violations,
        threads: threads(explore),
        history: history.clone(),
    };
    let mut progress = Progress::new();
    let outcome = exploration.run(&oracle, &mut |states, violations| progress.tell(states, violations))?;
    progress.end();
    if let Some(path) = &explore.report {
        let report = report::html(&history, &outcome)?;
        fs::write(path, report).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if explore.json {
        logging::print(serde_json::to_string_pretty(&outcome)? + "\n")?;
    } else {
        logging::print(told(&outcome))?;
    }
    Ok(ExitCode::from(u8::from(!outcome.violations.is_empty())))
}

fn factory(explore: &Explore, history: &Arc<History>, base: &Base) -> anyhow::Result<Factory> {
    let (history, base) = (history.clone(), base.clone());
    Ok(match explore.oracle.clone() {
        Judge::Raw => {
            let front = match &explore.front {
                Some(front) => open(front)?,
                None => history.clone(),
            };
            let raw = move || RawOracle::new(history.clone(), front.clone(), base.clone());
            Box::new(move || Ok(Box::new(raw())))
        }
        Judge::Ext4 => Box::new(move || Ok(Box::new(Ext4Oracle::new(history.clone())))),
        Judge::Compare => Box::new(move || Ok(Box::new(CompareOracle::new(history.clone())?))),
        Judge::Mount(fs) => Box::new(move || Ok(Box::new(MountOracle::new(history.clone(), &fs)?))),
        Judge::Command(command) => {
            Box::new(move || Ok(Box::new(CommandOracle::new(history.clone(), &command)?)))
        }
    })
}

/// Those who judge in memory can be many.
fn threads(explore: &Explore) -> usize {
    match explore.threads {
        Some(threads) => threads.get(),
        None if explore.oracle.is_in_memory() => thread::available_parallelism().map_or(1, usize::from),
        None => 1,
    }
}

fn told(outcome: &Outcome) -> String {
    let Outcome { contract, states, points, volatile_max, seconds, violations, .. } = outcome;
    let mut lines = Vec::new();
    for violation in violations {
        let guilt = &violation.guilt;
        lines.push(violation.state.clone());
        lines.extend(violation.faults.iter().map(|fault| format!("    {fault}")));
        lines.push(format!("  it is enough to lose ({} checks; {}):", guilt.checks, guilt.state));
        lines.extend(guilt.lost.iter().map(|lost| format!("    {}", lost.words)));
    }
    let rate = *states as f64 / seconds.max(f64::MIN_POSITIVE);
    lines.push(format!(
        "{}: {states} states at {points} points, at most {volatile_max} writes to lose, {rate:.0} states/s",
        contract.name()
    ));
    lines.push(match outcome.first_violation {
        None => "every promise was kept".to_owned(),
        Some(first) => format!("{} violations, the first in state {first}", violations.len()),
    });
    lines.join("\n") + "\n"
}

/// Tells how far it is.
struct Progress {
    began: Instant,
    told: Instant,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Progress {
        let now = Instant::now();
        Progress { began: now, told: now, is_terminal: std::io::stderr().is_terminal() }
    }

    fn tell(&mut self, states: u64, violations: usize) {
        if self.told.elapsed() < TELL_EVERY[usize::from(!self.is_terminal)] {
            return;
        }
        self.told = Instant::now();
        let rate = states as f64 / self.began.elapsed().as_secs_f64();
        let words = format!("{states} states, {rate:.0}/s, {violations} violations");
        if self.is_terminal {
            logging::print::hint(&format!("\r{words}\x1b[K"));
        } else {
            logging::print::hint(&format!("{words}\n"));
        }
    }

    fn end(&self) {
        if self.is_terminal {
            logging::print::hint("\r\x1b[K");
        }
    }
}
