//! The command: reads what was typed, does it, and says in one sentence what went wrong.

use anyhow::{Context, Result, bail};
use clap::Parser;
use nbd_attach::attach::{Attached, Held, Outcome, attach};
use nbd_attach::boot;
use nbd_attach::cli::{self, Cli, Command, TAB};
use nbd_attach::config::{AttachConfig, DetachConfig, InfoConfig, Keep, KeepConfig, StatusConfig};
use nbd_attach::detach::{Detached, detach, disconnect_only, flush_files};
use nbd_attach::device::Index;
use nbd_attach::event::Event;
use nbd_attach::host::{self, Host};
use nbd_attach::info::info;
use nbd_attach::interrupt::Interrupt;
use nbd_attach::keep::{Ended, keep, stay_in_memory, take_over};
use nbd_attach::registry::Lock;
use nbd_attach::status::{human_size, status};
use nbd_attach::sysfs::Sysfs;
use nbd_attach::tab;
use nbd_attach::watch::watch;
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::Level;

/// What systemd calls us as, with nothing but directories.
const GENERATOR: &str = "nbd-attach-generator";

/// Name look-ups at a time.
const LOOK_UPS_MAX: usize = 4;
/// A keeper whose device was detached needs up to a second to notice, and `status` takes its right for an instant to
/// see whether somebody has it.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

fn main() {
    let cli = typed();
    if let Command::Flush { files } = &cli.command {
        std::process::exit(flush_files(files));
    }
    let level = [Level::INFO, Level::DEBUG, Level::TRACE][usize::from(cli.verbose.min(2))];
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let code = match run(&cli.command) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("nbd-attach: {error:#}");
            1
        }
    };
    // Not a return: a thread may be left waiting in the kernel, and nothing is to be joined.
    std::process::exit(code);
}

fn typed() -> Cli {
    let mut words = std::env::args_os();
    let name = words.next().map(PathBuf::from).unwrap_or_default();
    if !name.ends_with(GENERATOR) {
        return Cli::parse();
    }
    let directories = words.map(PathBuf::from).collect();
    Cli { command: Command::Generate { directories, tab: TAB.into() }, verbose: 0 }
}

fn run(command: &Command) -> Result<()> {
    // Each name look-up may hang in a thread of its own; a keeper must not pile them up.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(LOOK_UPS_MAX).build()?;
    let result = runtime.block_on(perform(command));
    // A name look-up may still be running.
    runtime.shutdown_background();
    result
}

async fn perform(command: &Command) -> Result<()> {
    match command {
        Command::Attach(typed) => attach_typed(typed).await?,
        Command::Up(up) => {
            let entry = tab::find(&up.tab, &up.name)?;
            attach_typed(&entry.attach).await?;
        }
        Command::Keep(typed) => keep_attached(typed).await?,
        Command::Detach(typed) => {
            let (device, ended) = detach(&DetachConfig::new(typed)?, &Host::system()?).await?;
            match ended {
                Detached::Gone => tracing::info!("{device} is detached"),
                Detached::Lingering => tracing::warn!(
                    "{device} is disconnected, but stays until everything that uses it is unmounted or closed"
                ),
            }
        }
        Command::Status(typed) => {
            let config = StatusConfig::new(typed.device.as_deref(), typed.json)?;
            status(&config, &Host::system()?, &mut stdout())?;
        }
        Command::Watch(typed) => {
            let config = StatusConfig::new(typed.device.as_deref(), typed.json)?;
            watch(&config, &Host::system()?, &mut stdout()).await?;
        }
        Command::Info(typed) => info(&InfoConfig::new(typed)?, &mut stdout()).await?,
        Command::Udev { name } => print!("{}", boot::properties(&Sysfs::system(), name)),
        Command::Generate { directories, tab } => generate(directories, tab)?,
        Command::Disconnect { device } => {
            std::process::exit(disconnect_only(device.parse()?, &Host::system()?).await)
        }
        Command::Flush { .. } => unreachable!("done before any runtime exists"),
    }
    Ok(())
}

fn generate(directories: &[PathBuf], table: &Path) -> Result<()> {
    let into = directories.first().context("systemd gives a directory for the units")?;
    Ok(boot::generate(into, table)?)
}

async fn attach_typed(typed: &cli::Attach) -> Result<()> {
    let config = AttachConfig::new(typed, host::page_size())?;
    let is_kept = config.keep == Keep::Reconnect;
    if is_kept {
        stay_in_memory();
    }
    let mut interrupt = Interrupt::catch()?;
    let host = Host::system()?;
    let outcome = attach(&config, &host, &mut interrupt, &mut stdout()).await?;
    match &outcome {
        Outcome::Made(Held { attached, .. }) => {
            tracing::info!("{} is {}, {}", attached.device, attached.uri, human_size(attached.size_bytes));
        }
        Outcome::There(attached, _) => tracing::info!("{} is {} already", attached.device, attached.uri),
    }
    if !is_kept {
        return Ok(());
    }
    let (held, lock) = match outcome {
        Outcome::Made(held) => {
            let lock = keepers_right(&host, held.attached.device.parse()?).await?;
            (held, lock.context("another process keeps the device already")?)
        }
        Outcome::There(attached, record) => {
            let device = attached.device.clone();
            let Some(lock) = keepers_right(&host, device.parse()?).await? else {
                tracing::info!("{device} is kept by another process already");
                return Ok(());
            };
            let record = record.with_context(|| format!("{device} cannot be kept: its record is lost"))?;
            let config = config.with_connections(record.connections.len());
            let held = take_over(&config, &host, attached, record).await?;
            return stay(&config, &host, held, lock, &mut interrupt).await;
        }
    };
    stay(&config, &host, held, lock, &mut interrupt).await
}

/// The right to keep a device, unless somebody has it for good.
async fn keepers_right(host: &Host, index: Index) -> Result<Option<Lock>> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match host.registry.keeper(index)? {
            None if Instant::now() < until => sleep(LOCK_PAUSE).await,
            right => return Ok(right),
        }
    }
}

async fn keep_attached(typed: &cli::Keep) -> Result<()> {
    stay_in_memory();
    let wish = KeepConfig::new(typed)?;
    let host = Host::system()?;
    let device = host.find(&wish.device)?;
    let index = device.index;
    let record = host.registry.record(&device).with_context(|| {
        format!(
            "{index} cannot be kept: it was attached by another tool, or what was remembered of it is lost"
        )
    })?;
    let config = AttachConfig::new(&wish.applied_to(&record.attach), host::page_size())?;
    let Some(lock) = keepers_right(&host, index).await? else {
        bail!("{index} is kept by another process already");
    };
    let mut interrupt = Interrupt::catch()?;
    let attached = Attached::describe(&device, Some(&record))?;
    let held = take_over(&config, &host, attached, record).await?;
    stay(&config, &host, held, lock, &mut interrupt).await
}

/// Keeps a device, which nobody else does while the lock lasts.
async fn stay(
    config: &AttachConfig,
    host: &Host,
    held: Held,
    _lock: Lock,
    interrupt: &mut Interrupt,
) -> Result<()> {
    let device = held.attached.device.clone();
    if keep(config, host, held, interrupt, &mut stdout()).await? == Ended::Detached {
        tracing::info!("{device}: {}", Event::Detached);
    }
    Ok(())
}
