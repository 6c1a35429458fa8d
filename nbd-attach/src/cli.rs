//! What was typed. What it means is decided in [`crate::config`].

mod notes;

use std::path::PathBuf;

use crate::tls::Preference;
use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};

/// Attaches NBD exports to the kernel's nbd driver, so that they become /dev/nbdN.
#[derive(Debug, Parser)]
#[command(version, about, after_help = notes::whole(), disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Tell more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands, and some for the system's own use.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connect to a server and attach its export as a block device
    Attach(Attach),
    /// Flush and detach a device that nothing uses any more
    Detach(Detach),
    /// Show the attached devices
    Status(Status),
    /// Print what happens to the attached devices, as it happens
    Watch(Watch),
    /// Stay and reconnect a device that is attached already
    Keep(Keep),
    /// Attach an entry of the table and keep it, for the service nbd-attach@NAME
    Up(Up),
    /// Show what a server offers, without attaching anything
    Info(Info),
    /// What detach has another process do
    #[command(hide = true)]
    Flush {
        /// A device, or any file of a file system
        files: Vec<PathBuf>,
    },
    /// What detach --force has another process do
    #[command(hide = true)]
    Disconnect {
        /// A device
        device: String,
    },
    /// What has the driver asked in the place of another process
    #[command(hide = true)]
    Netlink,
    /// What attach has another process do
    #[command(hide = true)]
    Probe {
        /// A device
        node: PathBuf,
    },
    /// What detach has another process do
    #[command(hide = true)]
    Release {
        /// A device, which this process has open as its standard input
        device: String,
        /// Its identifier
        backend: String,
    },
    /// What the udev rule asks about a device: its properties
    #[command(hide = true)]
    Udev {
        /// nbdN or nbdNpM
        name: String,
    },
    /// What systemd runs at boot: units for the entries of the table
    #[command(hide = true)]
    Generate {
        /// Where the units go, and two places for others
        #[arg(required = true)]
        directories: Vec<PathBuf>,
        /// The table
        #[arg(long, default_value = TAB)]
        tab: PathBuf,
    },
}

/// What stands for no limit.
const FOREVER: &str = "infinity";
/// The same as a number: ten years, which the driver can count.
pub const FOREVER_SECONDS: u64 = 10 * 365 * 86_400;

fn seconds(typed: &str) -> Result<u64, String> {
    if typed == FOREVER {
        return Ok(FOREVER_SECONDS);
    }
    typed.parse().map_err(|_| format!("say a number of seconds, or {FOREVER}"))
}

/// Where the table is.
pub const TAB: &str = "/etc/nbd-attach.tab";

/// `nbd-attach attach`.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[serde(default)]
#[command(after_help = notes::ATTACH_NOTES)]
pub struct Attach {
    /// nbd://HOST:PORT/EXPORT, nbds://HOST:PORT/EXPORT for TLS, or nbd+unix:///EXPORT?socket=PATH
    pub uri: String,
    /// A name for the device, by which it is found again: attaching the same URI by the same id twice gives
    /// the same device, and with the udev rule it is /dev/disk/by-id/nbd-ID
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Attach as this device instead of any free one
    #[arg(long, value_name = "/dev/nbdN")]
    pub device: Option<String>,
    /// Connections to open; the server must allow more than one
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub connections: usize,
    /// Seconds a request may wait for its reply before its connection counts as dead; 0 is for ever [default: 60;
    /// with --keep, 10, and more when a request needs it]
    #[arg(long, value_name = "S")]
    pub timeout: Option<u64>,
    /// Wait for a server that is not there yet; with =S, so many seconds
    #[arg(long, value_name = "S", num_args = 0..=1, require_equals = true, default_missing_value = FOREVER,
        value_parser = seconds)]
    pub wait: Option<u64>,
    /// Stay, and give the device new connections when its server or the network has been away
    #[arg(long)]
    pub keep: bool,
    /// With --keep: return when the device is ready, and go on in the background; the log goes to syslog
    #[arg(long, requires = "keep")]
    #[serde(skip)]
    pub background: bool,
    /// Refuse a server that cannot tell when it has lost acknowledged writes
    #[arg(long)]
    pub require_epoch: bool,
    /// Seconds requests wait for a new connection once all are dead, before they fail, or `infinity` [default: 0;
    /// with --keep, an hour]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub dead_connection_timeout: Option<u64>,
    /// With --keep: seconds between two looks whether the export has grown; 0 is never
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub growth_interval: u64,
    /// TLS: directory with ca-cert.pem, and with client-cert.pem and client-key.pem where the server
    /// wants to know its clients [default: tls-certificates= of the URI]
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,
    /// TLS: name in the server's certificate [default: the host of the URI]
    #[arg(long, value_name = "NAME")]
    pub tls_hostname: Option<String>,
    /// TLS: the cipher to ask for
    #[arg(long, value_enum, value_name = "CIPHER", default_value_t)]
    pub tls_cipher: Preference,
    /// TLS, with --keep: records after which connections are made anew, because keys wear out [default: half of
    /// what AES-GCM allows; never for ChaCha20]
    #[arg(long, value_name = "N")]
    pub renew_after: Option<u64>,
    /// Block size of the device; 512 unless given, or the server's minimum where that is larger
    #[arg(long, value_name = "B")]
    pub block_size: Option<u32>,
    /// Make the device read-only, whatever the server allows
    #[arg(long)]
    pub read_only: bool,
    /// Print a JSON object instead of the device's path
    #[arg(long)]
    pub json: bool,
}

/// What is meant where nothing was typed, also for what a record of an earlier release does not have.
impl Default for Attach {
    fn default() -> Attach {
        match Cli::parse_from(["nbd-attach", "attach", ""]).command {
            Command::Attach(attach) => attach,
            _ => unreachable!("it is what was typed"),
        }
    }
}

/// `nbd-attach detach`.
#[derive(Debug, Args)]
#[command(after_help = notes::DETACH_NOTES)]
pub struct Detach {
    /// The device, or the id or the URI it was attached by
    #[arg(value_name = "DEVICE", required_unless_present = "all", conflicts_with = "all")]
    pub device: Option<String>,
    /// Detach every device that this tool attached; those that are in use stay, and make it fail
    #[arg(long)]
    pub all: bool,
    /// Unmount what is mounted of it first
    #[arg(long)]
    pub unmount: bool,
    /// Detach even when in use, when it cannot be flushed, or when another tool attached it
    #[arg(long)]
    pub force: bool,
}

/// `nbd-attach status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show only this device, or the one attached by this id; fails when it is not attached
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,
    /// Print a JSON object with a `version` and the `devices`
    #[arg(long)]
    pub json: bool,
}

/// `nbd-attach watch`.
#[derive(Debug, Args)]
#[command(after_help = notes::WATCH_NOTES)]
pub struct Watch {
    /// Print only what happens to this device, or to the one attached by this id
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,
    /// Print a JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// `nbd-attach keep`.
#[derive(Debug, Args)]
#[command(after_help = notes::KEEP_NOTES)]
pub struct Keep {
    /// The device, or the id it was attached by
    #[arg(value_name = "DEVICE")]
    pub device: String,
    /// Seconds a request may wait for its reply before its connection counts as dead [default: as attached]
    #[arg(long, value_name = "S")]
    pub timeout: Option<u64>,
    /// Seconds requests wait for a new connection once all are dead, before they fail, or `infinity` [default: as
    /// attached with --keep, else an hour]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub dead_connection_timeout: Option<u64>,
    /// Print a JSON object per event
    #[arg(long)]
    pub json: bool,
}

/// `nbd-attach up`.
#[derive(Debug, Args)]
#[command(after_help = notes::UP_NOTES)]
pub struct Up {
    /// The entry's name, which becomes the device's id
    pub name: String,
    /// The table
    #[arg(long, value_name = "FILE", default_value = TAB)]
    pub tab: PathBuf,
}

/// `nbd-attach info`.
#[derive(Debug, Args)]
pub struct Info {
    /// nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or nbd+vsock://CID:PORT/EXPORT, with
    /// nbds for TLS; without EXPORT, every export that the server lists
    pub uri: String,
    /// TLS: directory with ca-cert.pem, and with client-cert.pem and client-key.pem where the server
    /// wants to know its clients [default: tls-certificates= of the URI]
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,
    /// TLS: name in the server's certificate [default: the host of the URI, or localhost]
    #[arg(long, value_name = "NAME")]
    pub tls_hostname: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_tells_the_defaults_and_why() {
        let mut command = Cli::command();
        let attach = command.find_subcommand_mut("attach").unwrap();
        let help = attach.render_long_help().to_string();
        assert!(
            help.contains("with --keep, 10")
                && help.contains("nothing stays resident")
                && help.contains("an hour")
        );
    }
}
