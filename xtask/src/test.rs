//! Everything that must hold before a change goes in: format, lints, licences and every test, where a test
//! that could not run counts as one that failed.

use std::process::Command;

use anyhow::Result;

use crate::install;
use crate::run::{cargo, visibly};

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
    if !args.no_install {
        install::everything()?;
    }
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    step("lints", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    licences()?;
    if args.cargo_test.is_empty() {
        step("tests", test().args(["--workspace", "--exclude", "vm-tests"]))?;
        let machines = std::thread::available_parallelism().map_or(MACHINES_MIN, |cpus| cpus.get() + 1);
        let machines = machines.to_string();
        let mut tests = test();
        tests.args(["--package", "vm-tests", "--", "--test-threads", &machines]);
        return step("tests in virtual machines", tests.env("NBD_VM_SLOTS", &machines));
    }
    step("tests", test().arg("--workspace").args(&args.cargo_test))
}

/// One more than there are processors: there are tests that wait for a timeout of the kernel's.
const MACHINES_MIN: usize = 2;

fn test() -> Command {
    let mut test = cargo();
    test.arg("test").env("NBD_TESTS_STRICT", "1");
    test
}

/// cargo-deny takes minutes to compile, so it is used where it is and never installed; a test holds every crate
/// against the same `deny.toml`.
fn licences() -> Result<()> {
    if Command::new("cargo-deny").arg("--version").output().is_err() {
        eprintln!("== licences: left to tests/tests/policy.rs, as there is no cargo-deny here");
        return Ok(());
    }
    step("licences", cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("== {name}");
    visibly(command)
}
