//! The command: reads what was typed, does it, and says in one sentence what went wrong.

use anyhow::Result;
use clap::Parser;
use nbd_attach::attach::{Held, attach};
use nbd_attach::cli::{Cli, Command};
use nbd_attach::config::{AttachConfig, DetachConfig, InfoConfig, Keep, StatusConfig};
use nbd_attach::detach::{Detached, detach, flush_files};
use nbd_attach::host::{self, Host};
use nbd_attach::info::info;
use nbd_attach::interrupt::Interrupt;
use nbd_attach::keep::{Ended, keep};
use nbd_attach::status::{human_size, status};
use std::io::{IsTerminal, stdout};
use tracing::Level;

fn main() {
    let cli = Cli::parse();
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

fn run(command: &Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(perform(command));
    // A name look-up may still be running.
    runtime.shutdown_background();
    result
}

async fn keep_device(
    config: &AttachConfig,
    host: &Host,
    held: Held,
    interrupt: &mut Interrupt,
) -> Result<()> {
    let device = held.attached.device.clone();
    match keep(config, host, held, interrupt, &mut stdout()).await? {
        Ended::Detached => tracing::info!("{device} was detached"),
        Ended::Left(signal) => {
            tracing::warn!("{signal}: {device} stays attached, and nobody reconnects it any more");
        }
    }
    Ok(())
}

async fn perform(command: &Command) -> Result<()> {
    match command {
        Command::Attach(typed) => {
            let config = AttachConfig::new(typed, host::page_size())?;
            let mut interrupt = Interrupt::catch()?;
            let host = Host::system()?;
            let held = attach(&config, &host, &mut interrupt, &mut stdout()).await?;
            let made = &held.attached;
            tracing::info!("{} is {}, {}", made.device, made.uri, human_size(made.size_bytes));
            if config.keep == Keep::Reconnect {
                keep_device(&config, &host, held, &mut interrupt).await?;
            }
        }
        Command::Detach(typed) => {
            let config = DetachConfig::new(typed)?;
            match detach(&config, &Host::system()?).await? {
                Detached::Gone => tracing::info!("{} is detached", config.device),
                Detached::Lingering => tracing::warn!(
                    "{} is disconnected, but stays until everything that uses it is unmounted or closed",
                    config.device
                ),
            }
        }
        Command::Status(typed) => {
            status(&StatusConfig::new(typed)?, &Host::system()?, &mut stdout()).await?;
        }
        Command::Info(typed) => info(&InfoConfig::new(typed)?, &mut stdout()).await?,
        Command::Flush { .. } => unreachable!("done before any runtime exists"),
    }
    Ok(())
}
