//! The `nbd-server` binary: parse, open, serve.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use nbd_server::cli::{Cli, Command, LogFormat, Serve};
use nbd_server::config::{Config, Plan};
use nbd_server::ctl;
use nbd_server::engine::{Pool, pool};
use nbd_server::server::{self, Reloader};
use tracing::Level;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Ctl(ctl)) => ctl::run(ctl),
        Some(Command::CheckConfig { file }) => check(file),
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
    let plan = match &cli.config {
        Some(file) => Plan::read(file)?,
        None => Plan::typed(cli)?,
    };
    let config = Config::open(plan, &pool)?;
    let reloader = cli.config.clone().map(|file| Reloader::new(file, config.plan.clone(), pool));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(server::run(config, reloader))
}

fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let plan = Plan::read(file)?;
    plan.check()?;
    println!("{}: fine, with {} exports", file.display(), plan.exports.len());
    Ok(ExitCode::SUCCESS)
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
