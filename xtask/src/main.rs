//! `cargo xtask`: the commands of the README, so that a fresh Debian machine with Rust on it can be
//! brought to the demo, or to the whole test suite, by one line.

mod apt;
mod audit;
mod bench;
mod conformance;
mod coverage;
mod crash;
mod deb;
mod demo;
mod failing_disk;
mod fuzz;
mod install;
mod janitor;
mod kernels;
mod neighbours;
mod run;
mod test;
mod times;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::janitor::TemporaryFiles;

/// Installs, demonstrates and tests this project.
///
/// Every command first installs what it needs and finds missing, so any of them may be the first one run.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
enum Command {
    /// Install what the demo and the tests need, and fetch the guest kernels.
    Install(install::Args),
    /// Tell the story: serve a file, attach it, live on it, cut the power, find everything there.
    Demo(demo::Args),
    /// Measure what things cost, side by side in one run.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Watch what NBD servers have done before they reply, under injected faults, and print a table.
    Audit(audit::Args),
    /// Have conversations with NBD servers, tell where they leave the protocol, and print a table.
    Conformance(conformance::Args),
    /// Serve disks that fail in the kernel, look up on the medium what was answered as durable, and print a table.
    FailingDisk(failing_disk::Args),
    /// Have disks, clients and logs of a server hang, and print how long a good client waits meanwhile.
    Neighbours(neighbours::Args),
    /// Fuzz every parser and whole sessions.
    Fuzz(fuzz::Args),
    /// Count the lines of the protocol crate that its own tests reach.
    Coverage(coverage::Args),
    /// Explore what crashes could leave, on fresh recordings of file systems and of other servers.
    Crash(crash::Args),
    /// Make a Debian package of the binaries, their manual pages, completions and units.
    Deb(deb::Args),
    /// Check format, lints and licences, and run every test; a skipped test counts as failed.
    Test(test::Args),
}

fn main() -> ExitCode {
    match run(&Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    let temporary = TemporaryFiles::gather()?;
    match command {
        Command::Install(args) => install::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(bench) => bench::run(bench),
        Command::Audit(args) => audit::run(args),
        Command::Conformance(args) => conformance::run(args),
        Command::FailingDisk(args) => failing_disk::run(args),
        Command::Neighbours(args) => neighbours::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Coverage(args) => coverage::run(args),
        Command::Crash(args) => crash::run(args),
        Command::Deb(args) => deb::run(args),
        Command::Test(args) => test::run(args),
    }?;
    temporary.delete().context("cannot delete our temporary files")
}
