//! Everything that must hold before a change goes in: format, lints, licences and every test, where a test
//! that could not run counts as one that failed.

use std::process::Command;

use anyhow::Result;

use crate::install;
use crate::run::{cargo, visibly};
use crate::times::Times;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do not install anything; a missing tool then fails the tests that need it.
    #[arg(long)]
    no_install: bool,
    /// Arguments for `cargo test`, such as a filter.
    #[arg(last = true)]
    cargo_test: Vec<String>,
}

/// `cargo xtask test`
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut times = Times::default();
    let done = all(args, &mut times);
    eprintln!("== time\n{times}");
    done
}

fn all(args: &Args, times: &mut Times) -> Result<()> {
    if !args.no_install {
        times.part("installing", install::everything)?;
    }
    step("format", times, cargo().args(["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", times, cargo().args(lints))?;
    licences(times)?;
    if !args.cargo_test.is_empty() {
        return tests("tests", times, test().arg("--workspace").args(&args.cargo_test));
    }
    let native = tests("tests", times, test().args(["--workspace", "--exclude", "vm-tests"]));
    let machines = std::thread::available_parallelism().map_or(MACHINES_MIN, |cpus| cpus.get() + 1);
    let machines = machines.to_string();
    let mut in_machines = test();
    in_machines.args(["--package", "vm-tests", "--", "--test-threads", &machines]);
    let run_times = tempfile::NamedTempFile::new()?;
    in_machines.env("NBD_VM_SLOTS", &machines).env(vm_tests::RUN_TIMES, run_times.path());
    let in_machines = tests("tests in virtual machines", times, &mut in_machines);
    times.machines(&std::fs::read_to_string(run_times.path())?);
    native.and(in_machines)
}

/// One more than there are processors: there are tests that wait for a timeout of the kernel's.
const MACHINES_MIN: usize = 2;

fn test() -> Command {
    let mut test = cargo();
    test.args(["test", "--no-fail-fast"]).env("NBD_TESTS_STRICT", "1");
    test
}

/// cargo-deny takes minutes to compile, so it is used where it is and never installed; a test holds every crate
/// against the same `deny.toml`.
fn licences(times: &mut Times) -> Result<()> {
    if Command::new("cargo-deny").arg("--version").output().is_err() {
        eprintln!("== licences: left to tests/tests/policy.rs, as there is no cargo-deny here");
        return Ok(());
    }
    let checks = ["deny", "--offline", "check", "bans", "licenses", "sources"];
    step("licences", times, cargo().args(checks))
}

fn step(name: &str, times: &mut Times, command: &mut Command) -> Result<()> {
    eprintln!("== {name}");
    times.part(name, || visibly(command))
}

fn tests(name: &str, times: &mut Times, command: &mut Command) -> Result<()> {
    eprintln!("== {name}");
    times.tests(name, command)
}
