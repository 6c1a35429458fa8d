//! The `nbd-server` binary: parse, open, serve.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use nbd_server::cli::{Cli, Command, LogFormat, Serve};
use nbd_server::config::Config;
use nbd_server::ctl;
use nbd_server::engine::{Pool, pool};
use nbd_server::server;
use tracing::Level;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Ctl(ctl)) => ctl::run(ctl),
        None => serve(&cli.serve),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nbd-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(cli: &Serve) -> anyhow::Result<ExitCode> {
    start_log(cli);
    let pool = Pool::start(pool::THREADS)?;
    let config = Config::open(cli, &pool)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(server::run(config))
}

fn start_log(cli: &Serve) {
    let level = match cli.verbose {
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(colours);
    match cli.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
