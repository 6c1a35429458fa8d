//! The `nbd-server` binary: parse, open, serve.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use nbd_server::cli::{Cli, LogFormat};
use nbd_server::config::Config;
use nbd_server::engine::{Pool, pool};
use nbd_server::server;
use tracing::Level;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli);
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nbd-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let pool = Pool::start(pool::THREADS)?;
    let config = Config::open(cli, &pool)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(server::run(config))
}

fn start_log(cli: &Cli) {
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
