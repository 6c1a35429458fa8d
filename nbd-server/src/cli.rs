//! What was typed. What it means is [`crate::config`]'s business.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use serde::Deserialize;

use crate::confine::Sandbox;
use crate::durability::Mode;
use crate::engine::Engine;

/// Serve files, block devices and memory over the NBD protocol
#[derive(Debug, Parser)]
#[command(name = "nbd-server", version, about, after_long_help = EXAMPLES, disable_help_subcommand = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Serving.
    #[command(flatten)]
    pub serve: Serve,
}

/// What else the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask or tell a running server (to serve a file named ctl, write ./ctl)
    Ctl(Ctl),
    /// Check a configuration file, also while a server runs by it
    CheckConfig {
        /// The file
        file: PathBuf,
    },
}

/// `nbd-server ctl`.
#[derive(Debug, Args)]
#[command(after_help = CTL_EXAMPLES)]
pub struct Ctl {
    /// The server's admin socket
    #[arg(long, value_name = "PATH")]
    pub admin: PathBuf,

    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What a running server can be asked or told.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Show exports: mode, unstable bytes, poison, epoch, counters
    List {
        /// Only this export
        #[arg(long, value_name = "NAME")]
        export: Option<String>,
    },
    /// Change the durability mode without dropping connections; what was acknowledged is made
    /// stable first
    Mode {
        /// The new mode
        #[arg(value_enum)]
        mode: Mode,
        /// The export; needed only where there are several
        #[arg(long, value_name = "NAME")]
        export: Option<String>,
    },
    /// Make everything acknowledged so far stable
    Drain {
        /// The export; needed only where there are several
        #[arg(long, value_name = "NAME")]
        export: Option<String>,
    },
    /// Let an export work again after a failed sync; what was not stable may be lost
    ClearPoison {
        /// The export; needed only where there are several
        #[arg(long, value_name = "NAME")]
        export: Option<String>,
    },
}

const CTL_EXAMPLES: &str = "\
Examples:
  nbd-server --admin /run/nbd.admin disk.img &
  nbd-server ctl --admin /run/nbd.admin list
  nbd-server ctl --admin /run/nbd.admin mode writethrough
  nbd-server ctl --admin /run/nbd.admin list --json | jq '.exports[].unstable_bytes'";

/// What is to be served, where and how.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Serve what this file says (TOML; see the README); SIGHUP reads it again
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "listen", "unix", "unix_mode", "unix_group", "vsock", "durability", "dirty_max", "dirty_age", "early_ack_max", "state_dir", "admin", "record", "tls_cert", "tls_crl",
            "tls", "read_only", "direct", "user", "sandbox", "engine", "busy_poll", "workers", "max_connections", "max_memory", "handshake_timeout", "shutdown_timeout",
            "exports",
        ]
    )]
    pub config: Option<PathBuf>,

    /// TCP address to listen on, or :PORT for all addresses, of IPv6 and of IPv4; may be given several
    /// times [default: 127.0.0.1:10809, unless --unix or --vsock is given or sockets are inherited, as
    /// from systemd]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,

    /// Unix socket to listen on; may be given several times
    #[arg(long, value_name = "PATH")]
    pub unix: Vec<PathBuf>,

    /// Permissions of the Unix sockets, in octal: clients need the right to write [default: what the
    /// umask leaves, and 660 with --unix-group]
    #[arg(long, value_name = "MODE", requires = "unix", value_parser = parse_mode)]
    pub unix_mode: Option<u32>,

    /// Group of the Unix sockets
    #[arg(long, value_name = "NAME", requires = "unix")]
    pub unix_group: Option<String>,

    /// vsock port to listen on, for the virtual machines of this host, or in one for its host; may be
    /// given several times
    #[arg(long, value_name = "PORT")]
    pub vsock: Vec<u32>,

    /// What may be acknowledged before data is safe
    #[arg(long, value_enum, value_name = "MODE", default_value = "writeback")]
    pub durability: Mode,

    /// early-ack: memory for acknowledged writes that are not yet stored, per export; more writes
    /// wait
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub dirty_max: u64,

    /// early-ack: how long a write may wait for neighbours before it is stored
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub dirty_age: Duration,

    /// early-ack: longest write that is acknowledged early; longer ones gain nothing by it
    #[arg(long, value_name = "SIZE", default_value = "128K", value_parser = parse_size)]
    pub early_ack_max: u64,

    /// Where to keep the epochs of block devices and of files on file systems without extended
    /// attributes [default: $STATE_DIRECTORY, as systemd sets it]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Unix socket for `nbd-server ctl`, for this user only
    #[arg(long, value_name = "PATH")]
    pub admin: Option<PathBuf>,

    /// Record every write, flush and mark of the one export, and when it was answered, for nbd-crash
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Unix socket at which marks are taken into the recording, a line each
    #[arg(long, value_name = "PATH", requires = "record")]
    pub marks: Option<PathBuf>,

    /// Certificate of the server in PEM, and those that lead to its root: offers TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Key of the certificate in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Roots of the clients' certificates in PEM: clients must show one that leads there
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,

    /// Lists of revoked certificates in PEM, one of each issuer that a client's certificate has below
    /// its root: clients must show one that is in none
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub tls_crl: Option<PathBuf>,

    /// Whether clients may do without TLS where it is offered
    #[arg(long, value_enum, value_name = "WHEN", default_value = "required", requires = "tls_cert")]
    pub tls: TlsPolicy,

    /// Refuse writes; files are opened for reading only
    #[arg(long)]
    pub read_only: bool,

    /// Reach files and devices around the page cache of this host (O_DIRECT); sizes must be multiples of
    /// their block
    #[arg(long)]
    pub direct: bool,

    /// Serve as this user once the sockets listen; what is served must be open to it
    #[arg(long, value_name = "NAME[:GROUP]")]
    pub user: Option<String>,

    /// Whether to give up all files but those served, and all system calls but those needed
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub sandbox: Sandbox,

    /// How reads and writes that may wait for the disk are run
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub engine: Engine,

    /// How long a thread looks for the next request of a client that sends one at a time before it
    /// sleeps, if that client was as quick before; 0 sleeps at once
    #[arg(long, value_name = "MICROSECONDS", default_value = "50")]
    pub busy_poll: u64,

    /// Threads that serve connections [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,

    /// Connections at a time; more are closed at once
    #[arg(long, value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroUsize,

    /// Memory for the payloads of all connections together; those beyond wait
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub max_memory: u64,

    /// How long a client may take to choose an export
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "10",
        allow_negative_numbers = true,
        value_parser = parse_seconds
    )]
    pub handshake_timeout: Duration,

    /// How long clients may take to fetch their last replies after SIGTERM, and disks to store what was
    /// acknowledged
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub shutdown_timeout: Duration,

    /// How log lines on standard error look
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Log connections; twice: log every request [default: what RUST_LOG says, as warn or nbd_server=debug]
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// Log warnings and errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// What to serve: a regular file, a block device, memory:SIZE or null:SIZE, optionally with
    /// the name clients ask for; one without a name is the default export
    #[arg(required_unless_present = "config", value_name = "[NAME=]SPEC")]
    pub exports: Vec<String>,
}

/// Whether clients may do without TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsPolicy {
    /// Nothing is served in the clear
    #[default]
    Required,
    /// The client decides
    Optional,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line, for scripts
    Json,
}

impl Serve {
    /// What holds where nothing is typed.
    #[must_use]
    pub fn untyped() -> Serve {
        Cli::parse_from(["nbd-server", "--config", "-"]).serve
    }
}

const EXAMPLES: &str = "\
Durability modes, and what is lost when the host of the server loses power:
  writethrough  nothing that was acknowledged
  writeback     writes acknowledged since the last FLUSH, and not FUA; file systems expect this
  early-ack     the same; a killed server loses them too
  unsafe        anything, the file system included; for scratch data only

Examples:
  nbd-server disk.img                           the default export, on 127.0.0.1:10809
  nbd-server --unix /run/nbd.sock /dev/vg/lv    a block device, on a Unix socket only
  nbd-server --listen 0.0.0.0:10809 a=a.img scratch=memory:1G
  nbd-server --listen 0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem --tls-ca clients.pem disk.img

Once it serves, it prints one URI per listener on standard output. SIGTERM finishes what was
received, makes it durable and exits with 0; another one, more than a second later, does not wait for
that. SIGHUP reads the file of --config again, and without one ends the server. SIGUSR1 logs the
counters of every export.";

/// A size in bytes, with an optional binary suffix: 64M is 64 MiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| format!("{text:?} is no size ({error}); write for example 512M or 1G"))
}

/// Permissions, in octal.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("{text:?} is no mode; write for example 660"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
