//! The `nbd-crash` binary.

use std::process::ExitCode;

use clap::Parser;
use nbd_crash::cli::Cli;
use nbd_crash::commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nbd-crash: {error:#}");
            ExitCode::from(2)
        }
    }
}
