//! What was typed. What it means is decided in [`crate::config`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Attaches NBD exports to the kernel's nbd driver, so that they become /dev/nbdN.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Tell more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

const EXAMPLES: &str = "\
Examples:
  nbd-attach attach nbd://server/disk              prints the device, for example /dev/nbd0
  nbd-attach attach nbd+unix:///?socket=/run/nbd.sock --device /dev/nbd3
  nbd-attach status
  nbd-attach info nbd://server                     what the server offers
  nbd-attach detach /dev/nbd0

Attaching and detaching need root (CAP_SYS_ADMIN); looking does not.";

/// The four commands, and a fifth for the second's own use.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connect to a server and attach its export as a block device
    Attach(Attach),
    /// Flush and detach a device that nothing uses any more
    Detach(Detach),
    /// Show the attached devices
    Status(Status),
    /// Show what a server offers, without attaching anything
    Info(Info),
    /// What detach has another process do
    #[command(hide = true)]
    Flush {
        /// A device, or any file of a file system
        files: Vec<PathBuf>,
    },
}

/// `nbd-attach attach`.
#[derive(Debug, Args)]
#[command(after_help = ATTACH_NOTES)]
pub struct Attach {
    /// nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH
    pub uri: String,
    /// Attach as this device instead of any free one
    #[arg(long, value_name = "/dev/nbdN")]
    pub device: Option<String>,
    /// Connections to open; the server must allow more than one
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub connections: usize,
    /// Seconds a request may wait for its reply before its connection counts as dead; 0 is for ever
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub timeout: u64,
    /// Stay, and give the device new connections when its server or the network has been away
    #[arg(long)]
    pub keep: bool,
    /// Seconds requests wait for a new connection once all are dead, before they fail [default: 0; with
    /// --keep, an hour]
    #[arg(long, value_name = "S")]
    pub dead_connection_timeout: Option<u64>,
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

const ATTACH_NOTES: &str = "\
Without --keep nothing stays resident: once attached, the kernel holds the connections. When the server \
dies, a request in flight fails with an I/O error after --timeout, and everything after it fails at once. \
A server that needs longer than that for one request, a large flush for example, is taken for dead. \
With --timeout 0 such a request hangs for ever and so does whoever waits for it.
With --keep this process stays until the device is detached. Requests wait while the server is away, and \
those in flight are sent again once --timeout has passed. A server that comes back with another export, \
fewer bytes, other flags or an epoch that says that it has lost writes is refused, and the log says why. \
Ended by a signal, it leaves the device attached. With --json it prints a line per event.
--dead-connection-timeout without --keep only helps when something else reconnects.";

/// `nbd-attach detach`.
#[derive(Debug, Args)]
#[command(after_help = DETACH_NOTES)]
pub struct Detach {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub device: String,
    /// Detach even when in use, when it cannot be flushed, or when another tool attached it
    #[arg(long)]
    pub force: bool,
}

const DETACH_NOTES: &str = "\
Without --force the device must be neither mounted, nor swapped to, nor held by another device, \
nor open in a program, and everything written must have reached the server. With --force data may be lost.";

/// `nbd-attach status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show only this device; fails when it is not attached
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
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
            help.contains("[default: 10]")
                && help.contains("nothing stays resident")
                && help.contains("an hour")
        );
    }
}
