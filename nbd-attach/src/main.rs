//! The command: reads what was typed, does it, and says in one sentence what went wrong.

use anyhow::{Context, Result};
use clap::Parser;
use nbd_attach::attach::{Answer, Attached, Held, Outcome, attach};
use nbd_attach::cli::{self, Cli, Command, TAB};
use nbd_attach::config::{AttachConfig, DetachConfig, InfoConfig, Keep, KeepConfig, StatusConfig};
use nbd_attach::detach::{Detached, detach, disconnect_only, flush_files, meant, release_only};
use nbd_attach::event::Event;
use nbd_attach::exit::Status;
use nbd_attach::host::{self, Host};
use nbd_attach::info::{InfoError, info};
use nbd_attach::interrupt::Interrupt;
use nbd_attach::keep::{Ended, keep, stay_in_memory, take_over};
use nbd_attach::log::Log;
use nbd_attach::netlink::helper;
use nbd_attach::registry::{Lock, Record, Request};
use nbd_attach::revive::probe_only;
use nbd_attach::size::human_size;
use nbd_attach::status::{StatusError, status};
use nbd_attach::sysfs::{DeviceDir, Sysfs};
use nbd_attach::watch::{WatchError, watch};
use nbd_attach::{background, boot, tab};
use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::Level;

/// What systemd calls us as, with nothing but directories.
const GENERATOR: &str = "nbd-attach-generator";

/// Name look-ups at a time.
const LOOK_UPS_MAX: usize = 4;
/// A keeper whose device was detached needs up to a second to notice, and one that is to hand it over likewise.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

fn main() {
    let cli = typed();
    match &cli.command {
        Command::Flush { files } => std::process::exit(flush_files(files)),
        Command::Probe { node } => std::process::exit(probe_only(node)),
        // Nobody hears what it says; whoever asks hears that it has ended.
        Command::Netlink => std::process::exit(i32::from(helper::serve().is_err())),
        Command::Attach(typed) if typed.background && !background::is_inside() => std::process::exit(
            background::start(std::env::args_os().skip(1)).unwrap_or(Status::Failed.code()),
        ),
        _ => {}
    }
    background::leave_session();
    let log = Log::start([Level::INFO, Level::DEBUG, Level::TRACE][usize::from(cli.verbose.min(2))]);
    let code = match run(&cli.command, &log) {
        Ok(code) => {
            log.end();
            code
        }
        // Whoever reads what is shown may have seen enough.
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => {
            log.fail(&error);
            Status::of(&error).code()
        }
    };
    // Not a return: a thread may be left waiting in the kernel, and nothing is to be joined.
    std::process::exit(code);
}

/// Whether whoever read what a command prints has gone. A server that has gone is something else.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let printing = match (error.downcast_ref(), error.downcast_ref(), error.downcast_ref()) {
        (Some(StatusError::Io(error)), ..) => error,
        (_, Some(WatchError::Io(error)), _) => error,
        (.., Some(InfoError::Print(error))) => error,
        _ => return false,
    };
    printing.kind() == ErrorKind::BrokenPipe
}

fn typed() -> Cli {
    let mut words = std::env::args_os();
    let name = words.next().map(PathBuf::from).unwrap_or_default();
    if !name.ends_with(GENERATOR) {
        return Cli::try_parse().unwrap_or_else(|help| std::process::exit(told(&help)));
    }
    let directories = words.map(PathBuf::from).collect();
    Cli { command: Command::Generate { directories, tab: TAB.into() }, verbose: 0 }
}

/// Prints help, or what is wrong with what was typed; gives the exit code. A reader that has gone has seen enough.
fn told(help: &clap::Error) -> i32 {
    match help.print() {
        Err(error) if help.exit_code() == 0 && error.kind() != ErrorKind::BrokenPipe => {
            // Nobody may be there to be told that either.
            let _ = writeln!(std::io::stderr(), "nbd-attach: {error}");
            Status::Failed.code()
        }
        _ => help.exit_code(),
    }
}

fn run(command: &Command, log: &Log) -> Result<i32> {
    // Each name look-up may hang in a thread of its own; a keeper must not pile them up.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(LOOK_UPS_MAX).build()?;
    let result = runtime.block_on(perform(command, log));
    // A name look-up may still be running.
    runtime.shutdown_background();
    result
}

async fn perform(command: &Command, log: &Log) -> Result<i32> {
    match command {
        Command::Attach(typed) => return attach_typed(typed, Other::Leave, log).await,
        Command::Up(up) => {
            let entry = tab::find(&up.tab, &up.name)?;
            return attach_typed(&entry.attach, Other::Succeed, log).await;
        }
        Command::Keep(typed) => return keep_attached(typed, log).await,
        Command::Detach(typed) => return detach_all(&DetachConfig::new(typed)?, &Host::system()?).await,
        Command::Status(typed) => {
            let config = StatusConfig::new(typed.device.as_deref(), typed.json)?;
            status(&config, &Host::system()?, &mut stdout())?;
        }
        Command::Watch(typed) => {
            let config = StatusConfig::new(typed.device.as_deref(), typed.json)?;
            watch(&config, &Host::system()?, &mut stdout()).await?;
        }
        Command::Info(typed) => info(&InfoConfig::new(typed)?, &mut stdout()).await?,
        Command::Udev { name } => write!(stdout(), "{}", boot::properties(&Sysfs::system(), name))?,
        Command::Generate { directories, tab } => generate(directories, tab)?,
        Command::Disconnect { device } => {
            return Ok(disconnect_only(device.parse()?, &Host::of_helper()?).await);
        }
        Command::Release { device, backend } => {
            return Ok(release_only(device.parse()?, backend, &Host::of_helper()?).await);
        }
        Command::Flush { .. } | Command::Netlink | Command::Probe { .. } => {
            unreachable!("done before any runtime exists")
        }
    }
    Ok(0)
}

fn generate(directories: &[PathBuf], table: &Path) -> Result<()> {
    let into = directories.first().context("systemd gives a directory for the units")?;
    Ok(boot::generate(into, table)?)
}

/// Detaches what is meant. One of many that cannot be detached keeps none of the others.
async fn detach_all(config: &DetachConfig, host: &Host) -> Result<i32> {
    let mut failed = None;
    for device in meant(config, host)? {
        match detach_one(&device, config, host).await {
            Ok(()) => {}
            Err(error) if config.device.is_some() => return Err(error),
            Err(error) => {
                tracing::error!("{error:#}");
                failed = failed.or(Some(Status::of(&error).code()));
            }
        }
    }
    Ok(failed.unwrap_or(0))
}

async fn detach_one(device: &DeviceDir, config: &DetachConfig, host: &Host) -> Result<()> {
    let name = device.index;
    match detach(device, config, host).await? {
        Detached::Gone => tracing::info!("{name} is detached"),
        Detached::Lingering => tracing::warn!(
            "{name} is disconnected, but stays until everything that uses it is unmounted or closed"
        ),
    }
    Ok(())
}

/// What to do about another process that keeps the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    /// It is as good as this one.
    Leave,
    /// A service has to be it.
    Succeed,
}

async fn attach_typed(typed: &cli::Attach, other: Other, log: &Log) -> Result<i32> {
    let config = AttachConfig::new(typed, host::page_size())?;
    let is_kept = config.keep == Keep::Reconnect;
    if is_kept {
        stay_in_memory();
    }
    let mut interrupt = Interrupt::catch()?;
    let host = Host::system()?;
    match attach(&config, &host, &mut interrupt, &mut stdout()).await? {
        Outcome::Made(held) => {
            let Attached { device, uri, size_bytes, .. } = &held.attached;
            tracing::info!("{device} is {uri}, {}", human_size(*size_bytes));
            if is_kept { stay(&config, &host, *held, &mut interrupt, log).await } else { Ok(0) }
        }
        Outcome::There(attached, record, answer) => {
            tracing::info!("{} is {} already", attached.device, attached.uri);
            if !is_kept {
                return Ok(0);
            }
            let config = config.with_connections(record.connections.len());
            succeed(&config, &host, (attached, *record, answer), other, &mut interrupt, log).await
        }
    }
}

async fn keep_attached(typed: &cli::Keep, log: &Log) -> Result<i32> {
    stay_in_memory();
    let wish = KeepConfig::new(typed)?;
    let host = Host::system()?;
    let device = host.find(&wish.device)?;
    let index = device.index;
    let backend = device.backend().unwrap_or_default();
    let told = nbd_attach::identifier::read(&backend);
    let told = told.with_context(|| format!("{index} cannot be kept: it was attached by another tool"))?;
    let mut interrupt = Interrupt::catch()?;
    let (config, record) = match host.registry.record(&device) {
        Some(record) => (AttachConfig::new(&wish.applied_to(&record.attach), host::page_size())?, record),
        None => {
            let typed = cli::Attach {
                uri: told.uri.to_owned(),
                id: told.id.map(str::to_owned),
                ..cli::Attach::default()
            };
            let config = AttachConfig::new(&wish.applied_to(&typed), host::page_size())?;
            tracing::warn!(
                "what was remembered of {index} is lost; its server is believed whatever it serves, and one \
                 connection is expected"
            );
            let record = Record::rebuilt(&config, &backend, device.size()?).await?;
            (config, record)
        }
    };
    let attached = Attached::describe(&device, Some(&record))?;
    succeed(&config, &host, (attached, record, Answer::Read), Other::Leave, &mut interrupt, log).await
}

/// Keeps a device that is there, unless another process does.
async fn succeed(
    config: &AttachConfig,
    host: &Host,
    (attached, record, answer): (Attached, Record, Answer),
    other: Other,
    interrupt: &mut Interrupt,
    log: &Log,
) -> Result<i32> {
    let device = attached.device.clone();
    let lock = match keepers_right(host, &attached.backend, other).await {
        Right::Ours(lock) => lock,
        Right::Others => {
            tracing::info!("{device} is kept by another process already");
            return Ok(0);
        }
    };
    let held = take_over(config, host, attached, record, lock, answer).await?;
    stay(config, host, held, interrupt, log).await
}

/// Who may keep a device.
enum Right {
    /// This process; without a lock where none can be had.
    Ours(Option<Lock>),
    /// Another one.
    Others,
}

/// The right to keep a device, unless somebody has it for good.
async fn keepers_right(host: &Host, backend: &str, other: Other) -> Right {
    let until = Instant::now() + LOCK_PATIENCE;
    if other == Other::Succeed
        && host.registry.is_kept(backend)
        && let Err(error) = host.registry.ask(Request::HandOver, backend)
    {
        tracing::debug!("its keeper is not asked to hand over: {error}");
    }
    loop {
        match host.registry.keeper(backend) {
            Ok(None) if Instant::now() < until => sleep(LOCK_PAUSE).await,
            Ok(None) => return Right::Others,
            Ok(lock) => return Right::Ours(lock),
            Err(error) => {
                tracing::warn!("two processes may keep the device: {error}");
                return Right::Ours(None);
            }
        }
    }
}

/// Keeps a device, which nobody else does while its lock lasts.
async fn stay(
    config: &AttachConfig,
    host: &Host,
    held: Held,
    interrupt: &mut Interrupt,
    log: &Log,
) -> Result<i32> {
    let device = held.attached.device.clone();
    Ok(match keep(config, host, held, interrupt, log.events()).await? {
        Ended::Detached => {
            tracing::info!("{device}: {}", Event::Detached);
            0
        }
        Ended::HandedOver => {
            tracing::info!("{device} is kept by another process from now on");
            0
        }
        Ended::Left(_) => Status::Left.code(),
    })
}
