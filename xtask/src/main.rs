//! `cargo xtask`: the commands of the README, so that a fresh Debian machine with Rust on it can be
//! brought to the demo, or to the whole test suite, by one line.

mod apt;
mod demo;
mod install;
mod kernels;
mod run;
mod test;

use std::process::ExitCode;

use clap::Parser;

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
    /// Check format, lints and licences, and run every test; a skipped test counts as failed.
    Test(test::Args),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Install(args) => install::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
