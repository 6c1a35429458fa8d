//! Fuzzes every parser and whole sessions, with libFuzzer by cargo-fuzz. What must hold is in the `fuzz` crate.
//!
//! Without a sanitizer, so that a stable compiler will do: the code under test is safe Rust, and its faults are
//! panics, hangs and broken properties.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::install;
use crate::run::{cargo, quietly};

/// Longest input, in bytes: a negotiation with long strings and some requests.
const INPUT_MAX: u32 = 4096;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these targets
    target: Vec<String>,
    /// Seconds for each target; as many run side by side as there are processors
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Take what is worth keeping into the corpus that the tests replay
    #[arg(long)]
    keep: bool,
}

/// `cargo xtask fuzz`
pub(crate) fn run(args: &Args) -> Result<()> {
    install::for_fuzz()?;
    let workspace = vm_tests::paths::workspace();
    let fuzz = workspace.join("fuzz");
    let all = names(&fuzz.join("fuzz_targets"))?;
    if let Some(unknown) = args.target.iter().find(|target| !all.contains(target)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let targets = if args.target.is_empty() { &all } else { &args.target };
    eprintln!("== building {} targets", targets.len());
    let build = ["fuzz", "build", "--fuzz-dir", "fuzz", "--sanitizer", "none", "--features", "libfuzzer"];
    quietly(cargo().args(build).args(["--target-dir", "target/fuzz"]))?;
    let programs = programs(&workspace)?;
    let queue = Mutex::new(targets.iter().cloned().collect::<VecDeque<_>>());
    let next = || queue.lock().ok()?.pop_front();
    let work = || -> Result<()> {
        while let Some(target) = next() {
            one(&Target::new(&fuzz, &programs, &target)?, args)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it returns errors"))
    })
}

/// Where a target has its things.
struct Target {
    name: String,
    program: PathBuf,
    /// What the tests replay.
    corpus: PathBuf,
    /// What runs on this machine have found worth keeping.
    found: PathBuf,
    /// Inputs that break something.
    broken: PathBuf,
}

impl Target {
    fn new(fuzz: &Path, programs: &Path, name: &str) -> Result<Target> {
        let out = programs.join("found").join(name);
        let target = Target {
            name: name.to_owned(),
            program: programs.join(name),
            corpus: fuzz.join("corpus").join(name),
            found: out.join("corpus"),
            broken: out.join("broken"),
        };
        [&target.corpus, &target.found, &target.broken].into_iter().try_for_each(fs::create_dir_all)?;
        Ok(target)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("-max_len={INPUT_MAX}"));
        command.arg(format!("-artifact_prefix={}/", self.broken.display()));
        command
    }
}

fn one(target: &Target, args: &Args) -> Result<()> {
    let output = target
        .command()
        .arg(format!("-max_total_time={}", args.seconds))
        .args([&target.found, &target.corpus])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        bail!("{} has found a fault; the input is in {}", target.name, target.broken.display());
    }
    let runs = runs(&said).context("libFuzzer did not say what it has done")?;
    if args.keep {
        let merge =
            target.command().arg("-set_cover_merge=1").args([&target.corpus, &target.found]).output()?;
        ensure!(merge.status.success(), "{}: {}", target.name, String::from_utf8_lossy(&merge.stderr));
    }
    let inputs = fs::read_dir(&target.corpus)?.count();
    eprintln!("   {:<18}{runs:>12} runs, nothing found; {inputs} inputs are in the corpus", target.name);
    Ok(())
}

/// libFuzzer's last words: `Done 4711 runs in 61 second(s)`.
fn runs(said: &str) -> Option<u64> {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("Done "))?;
    line.split(' ').next()?.parse().ok()
}

/// The targets, by the names of their files.
fn names(programs: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(programs)? {
        names.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Where cargo-fuzz has put them: it always builds for a named machine, by default this one.
fn programs(workspace: &Path) -> Result<PathBuf> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(workspace.join("target/fuzz").join(host).join("release"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_understood() {
        assert_eq!(runs("#2 INITED\nDone 4711 runs in 61 second(s)\n"), Some(4711));
        assert_eq!(runs("Done in\n"), None);
    }
}
