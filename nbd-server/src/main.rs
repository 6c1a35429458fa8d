//! The `nbd-server` binary: parse, open, serve.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use logging::{LevelFilter, Log, Look};
use nbd_server::cli::{Cli, Command, LogFormat, Serve};
use nbd_server::config::{Config, Locks, Plan, Recording};
use nbd_server::confine::{self, User};
use nbd_server::ctl;
use nbd_server::engine::{Pool, pool};
use nbd_server::listen::raise_descriptor_limit;
use nbd_server::server::{self, Reloader, Sockets};

/// What errors begin with.
const NAME: &str = "nbd-server";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) => return logging::print::help(NAME, help.print(), help.exit_code(), 1),
    };
    let done = match &cli.command {
        Some(Command::Ctl(ctl)) => ctl::run(ctl),
        Some(Command::CheckConfig { file }) => check(file),
        None => serve(&cli.serve),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            logging::complain(NAME, format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(cli: &Serve) -> anyhow::Result<ExitCode> {
    let log = start_log(cli);
    let code = run(cli, &log);
    log.finish();
    code
}

fn run(cli: &Serve, log: &Log) -> anyhow::Result<ExitCode> {
    let plan = match &cli.config {
        Some(file) => Plan::read(file)?,
        None => Plan::typed(cli)?,
    };
    raise_descriptor_limit(plan.globals.connections_max, plan.exports.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Its sockets are the runtime's.
    let sockets = runtime.block_on(async { Sockets::open(&plan.globals) })?;
    // From here on with no more rights than needed; threads inherit what holds for this one.
    plan.globals.user.iter().try_for_each(User::become_it)?;
    let recording = Recording::open(&plan.globals)?;
    let locks = Locks::default();
    let locked = plan.lock(&locks)?;
    let reach = plan.reach(cli.config.as_deref());
    let confined = confine::files(plan.globals.sandbox, &reach)?;
    log.in_background();
    let pool = Pool::start(pool::THREADS)?;
    let config = Config::open(plan, &pool, &locks)?;
    drop(locked);
    recording.map_or(Ok(()), |recording| recording.begin(&config))?;
    let reloader =
        cli.config.clone().map(|file| Reloader::new(file, config.plan.clone(), reach, pool, locks));
    let code = runtime.block_on(server::run(config, sockets, confined, reloader));
    // Its threads may wait for a disk for ever; they end with the process.
    std::mem::forget(runtime);
    code
}

fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let plan = Plan::read(file)?;
    plan.check()?;
    let exports = match plan.exports.len() {
        1 => "1 export".to_owned(),
        many => format!("{many} exports"),
    };
    logging::print(format!("{}: fine, with {exports}\n", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn start_log(cli: &Serve) -> Log {
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => Some(LevelFilter::WARN),
        (false, 0) => None,
        (false, 1) => Some(LevelFilter::DEBUG),
        (false, _) => Some(LevelFilter::TRACE),
    };
    let look = match cli.log_format {
        LogFormat::Text => Look::Text,
        LogFormat::Json => Look::Json,
    };
    logging::start(&logging::Options { level, look, ..logging::Options::default() })
}
