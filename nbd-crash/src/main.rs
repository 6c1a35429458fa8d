//! The `nbd-crash` binary.

use std::process::ExitCode;

use clap::Parser;
use nbd_crash::cli::Cli;
use nbd_crash::commands;

/// Something could not be done; 1 is for promises that were broken.
const TROUBLE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) => return logging::print::help("nbd-crash", help.print(), help.exit_code(), TROUBLE),
    };
    let log = logging::start(&logging::Options::default());
    log.in_background();
    let code = commands::run(cli.command).unwrap_or_else(|error| {
        logging::complain("nbd-crash", format_args!("{error:#}"));
        ExitCode::from(TROUBLE)
    });
    log.finish();
    code
}
