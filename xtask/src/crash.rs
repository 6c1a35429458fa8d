//! Explores what crashes could leave, for a given time: of fresh recordings of ext4 and xfs on both kernels in each
//! durability mode, of the storage of other servers, and of our early acknowledgements when the server is killed.

mod subjects;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use vm_tests::crash::{BROKEN, Recording, Subject, explorer, keep, trace};
use vm_tests::{Kit, Scene, Series};

use crate::install;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each exploration.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides what is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only on this kernel: 6.1 or 6.12.
    #[arg(long)]
    kernel: Option<String>,
    /// Keep the recordings in this directory, compressed.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// A name and a text.
type Workload = (&'static str, &'static str);
const ORDINARY: Workload = ("ordinary", include_str!("../../nbd-crash/workloads/ordinary.txt"));
const BUSY: Workload = ("busy", include_str!("../../nbd-crash/workloads/busy.txt"));
/// Modes and connections, and what is done.
const RECORDINGS: [(&str, u32, Workload); 6] = [
    ("writeback", 1, ORDINARY),
    ("writeback", 4, ORDINARY),
    ("writethrough", 4, ORDINARY),
    ("early-ack", 4, ORDINARY),
    ("unsafe", 4, ORDINARY),
    ("writeback", 4, BUSY),
];
/// States among which a broken contract must be found out.
const STATES_MAX: u64 = 1000;
/// What a guest may take longer than it was told, or for so many states.
const GRACE: Duration = Duration::from_secs(300);

/// What exploring led to; see `nbd-crash explore --json`.
#[derive(Deserialize)]
pub(super) struct Outcome {
    contract: String,
    states: u64,
    seconds: f64,
    first_violation: Option<u64>,
    violations: Vec<Violation>,
}

#[derive(Deserialize)]
struct Violation {
    state: String,
    faults: Vec<String>,
    guilt: Guilt,
}

#[derive(Deserialize)]
struct Guilt {
    checks: usize,
}

/// What is to come of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// No violation.
    Clean,
    /// At least one.
    Caught,
}

/// `cargo xtask crash`
pub(crate) fn run(args: &Args) -> Result<()> {
    install::for_crash()?;
    if let Some(directory) = &args.keep {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    vm_tests::guest::build_visibly()?;
    println!(
        "{:<38} {:>14} {:>8} {:>9} {:>6} {:>7}",
        "subject", "contract", "states", "states/s", "first", "checks"
    );
    let mut wrong = Vec::new();
    for (series, name) in [(Series::V6_1, "6.1"), (Series::V6_12, "6.12")] {
        if args.kernel.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        for (fs, recordings) in [
            (Subject::Ext4, &RECORDINGS[..]),
            (Subject::Xfs, &RECORDINGS[..5]),
            (Subject::Btrfs, &RECORDINGS[1..2]),
        ] {
            for &(mode, connections, workload) in recordings {
                let subject = format!("{fs} {mode} x{connections} {} on {name}", workload.0);
                let mut told = |due, outcome: &Outcome| wrong.extend(tell(&subject, due, outcome));
                let recording = Recording { fs, mode, connections, workload: workload.1 };
                file_system(args, series, recording, workload.0, &mut told).context(subject.clone())?;
            }
        }
    }
    compare(args, &mut |due, outcome| wrong.extend(tell("ext4, in memory and by 6.12", due, outcome)))?;
    subjects::run(args.seconds, args.seed, &mut |subject, due, outcome| {
        wrong.extend(tell(subject, due, outcome));
    })?;
    ensure!(wrong.is_empty(), "not as it should be:\n{}", wrong.join("\n"));
    println!("all as it should be");
    Ok(())
}

/// Records a file system and explores what was recorded.
fn file_system(
    args: &Args,
    series: Series,
    recording: Recording<'_>,
    workload: &str,
    tell: &mut dyn FnMut(Due, &Outcome),
) -> Result<()> {
    let Recording { fs, mode, connections, .. } = recording;
    let scene = Scene::set("crash", series, &[Kit::Ours, Kit::Ext4, Kit::Xfs, Kit::Btrfs])?;
    let log = recording.make_in(&scene)?;
    if let Some(directory) = &args.keep {
        let name = format!("{fs}-{connections}-{mode}-{workload}.nbdrec.gz");
        keep(&log, &directory.join(name))?;
    }
    // What the clients were told is that nothing is promised: then it must be possible to lose something.
    let (contract, due) = if mode == "unsafe" { ("unsafe", Due::Caught) } else { ("nbd", Due::Clean) };
    let mut all = vec![(contract, due)];
    if mode == "writeback" {
        let broken = BROKEN.into_iter().filter(|contract| connections > 1 || *contract != "own-connection");
        all.extend(broken.map(|contract| (contract, Due::Caught)));
    }
    let how = |contract: &str, due| {
        // What breaks promises must be found soon.
        let (budget, violations) = match due {
            Due::Clean => (format!("{}s", args.seconds), 10),
            Due::Caught => (STATES_MAX.to_string(), 1),
        };
        format!(
            "--contract {contract} --budget {budget} --seed {} --violations {violations} --json",
            args.seed
        )
    };
    if fs == Subject::Ext4 {
        for (contract, due) in all {
            tell(due, &explore(&log, &format!("--oracle ext4 {}", how(contract, due)))?);
        }
    } else {
        let vm = scene.vm().disk(&log);
        let vm = if fs == Subject::Btrfs { vm.module("btrfs") } else { vm };
        let mut vm = vm.boot()?;
        for (contract, due) in all {
            let how = how(contract, due);
            let command =
                format!("nbd-crash explore /dev/vda --oracle mount:{fs} {how} 2>/dev/null; [ $? -lt 2 ]");
            let out = vm.run_within(Duration::from_secs(args.seconds) + GRACE, &command)?;
            tell(due, &serde_json::from_str(&out).with_context(|| out.clone())?);
        }
    }
    scene.clear()
}

/// Has the kernel judge beside the judge in memory: every state of a committed recording that is not random, and for a
/// time those that broken servers could leave.
fn compare(args: &Args, tell: &mut dyn FnMut(Due, &Outcome)) -> Result<()> {
    let scene = Scene::set("crash", Series::V6_12, &[Kit::Ours])?;
    let copy = scene.scratch().join("recording");
    std::fs::copy(trace("ext4-4-writeback-ordinary"), &copy).context("cannot copy the recording")?;
    let mut vm = scene.vm().disk(copy).boot()?;
    let mut judge = |how: &str, limit: Duration| -> Result<()> {
        let command =
            format!("nbd-crash explore /dev/vda --oracle compare {how} --json 2>/dev/null; [ $? -lt 2 ]");
        let out = vm.run_within(limit, &command)?;
        tell(Due::Clean, &serde_json::from_str(&out).with_context(|| out.clone())?);
        Ok(())
    };
    judge("--random 0 --budget 1000000", GRACE * 4)?;
    for contract in BROKEN {
        let limit = Duration::from_secs(args.seconds) + GRACE;
        judge(&format!("--contract {contract} --budget {}s --seed {}", args.seconds, args.seed), limit)?;
    }
    scene.clear()
}

/// Explores a recording on this machine.
pub(super) fn explore(log: &Path, how: &str) -> Result<Outcome> {
    let out = Command::new(explorer()?).arg("explore").arg(log).args(how.split_whitespace()).output()?;
    serde_json::from_slice(&out.stdout)
        .with_context(|| format!("nbd-crash failed: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

/// Prints a row; gives it, in words, if it is not as it should be.
fn tell(subject: &str, due: Due, outcome: &Outcome) -> Option<String> {
    let Outcome { contract, states, seconds, first_violation, violations } = outcome;
    let rate = *states as f64 / seconds.max(0.001);
    let first = first_violation.map_or("-".to_owned(), |first| first.to_string());
    let checks = violations.first().map_or("-".to_owned(), |first| first.guilt.checks.to_string());
    println!("{subject:<38} {contract:>14} {states:>8} {rate:>9.1} {first:>6} {checks:>7}");
    match (due, violations.first()) {
        (Due::Clean, Some(first)) => {
            Some(format!("{subject}, {contract}: {}: {}", first.state, first.faults.join("; ")))
        }
        (Due::Caught, None) => Some(format!("{subject}, {contract}: nothing was found")),
        _ => None,
    }
}
