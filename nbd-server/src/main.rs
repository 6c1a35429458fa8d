//! The `nbd-server` binary: parse, open, serve.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use nbd_server::cli::{Cli, Command, LogFormat, Serve};
use nbd_server::config::{Config, Plan, Recording};
use nbd_server::confine::{self, User};
use nbd_server::ctl;
use nbd_server::engine::{Pool, pool};
use nbd_server::server::{self, Reloader, Sockets};
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
    let plan = match &cli.config {
        Some(file) => Plan::read(file)?,
        None => Plan::typed(cli)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sockets = runtime.block_on(Sockets::open(&plan.globals))?;
    // From here on with no more rights than needed; threads inherit what holds for this one.
    plan.globals.user.iter().try_for_each(User::become_it)?;
    let recording = Recording::open(&plan.globals)?;
    let reach = plan.reach(cli.config.as_deref());
    let confined = confine::files(plan.globals.sandbox, &reach)?;
    let pool = Pool::start(pool::THREADS)?;
    let config = Config::open(plan, &pool)?;
    recording.map_or(Ok(()), |recording| recording.begin(&config))?;
    let reloader = cli.config.clone().map(|file| Reloader::new(file, config.plan.clone(), reach, pool));
    runtime.block_on(server::run(config, sockets, confined, reloader))
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
