//! What the command line means: every value checked and typed, every refusal a sentence.

use crate::cli;
use crate::device::{DeviceNameError, Index};
use crate::tls::{Connector, TlsError};
use common::uri::{Tls, Transport, Uri, UriError};
use std::time::Duration;

/// Connections per device. The driver makes one hardware queue per CPU at most; more sockets than
/// this are idle spares, and each costs the server memory.
pub const CONNECTIONS_MAX: usize = 64;
/// A day. Longer waits are mistakes, and the driver multiplies by its tick rate in 32 bits.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// How long requests wait for a server to come back, where somebody reconnects and nothing else was said: an
/// hour.
const KEPT_SECONDS: u64 = 3600;
/// The smallest block the driver accepts.
pub const BLOCK_SIZE_MIN: u32 = 512;

/// How a device is to be attached.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// Where the export is.
    pub uri: Uri,
    /// The device asked for, if any.
    pub device: Option<Index>,
    /// At least one.
    pub connections: usize,
    /// Zero is for ever.
    pub timeout: Duration,
    /// Zero is not to wait.
    pub dead_connection_timeout: Duration,
    /// What was asked for, if anything.
    pub block_size: Option<u32>,
    /// Whether writing is wanted.
    pub access: Access,
    /// What becomes of the device when its server goes away.
    pub keep: Keep,
    /// How to print the result.
    pub output: Output,
}

/// What becomes of a device when its server goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It fails.
    No,
    /// It is given new connections.
    Reconnect,
}

/// Whether the device shall be writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writable when the server allows it.
    AsOffered,
    /// Never.
    ReadOnly,
}

/// For whom the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A path or a table.
    Human,
    /// For programs.
    Json,
}

/// How a device is to be detached.
#[derive(Clone, Copy, Debug)]
pub struct DetachConfig {
    /// Which.
    pub device: Index,
    /// What to do about a device in use.
    pub insistence: Insistence,
}

/// What detaching does when something speaks against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insistence {
    /// Say so and leave the device attached.
    Refuse,
    /// Say so and detach all the same.
    Force,
}

/// Which server is to be asked.
#[derive(Clone)]
pub struct InfoConfig {
    /// Where it is; without an export, all of them are meant.
    pub uri: Uri,
    /// How to encrypt, where the URI says so.
    pub tls: Option<Connector>,
    /// How to print the answer.
    pub output: Output,
}

/// What is to be shown.
#[derive(Clone, Copy, Debug)]
pub struct StatusConfig {
    /// One device, or all attached ones.
    pub device: Option<Index>,
    /// How.
    pub output: Output,
}

/// Why what was typed makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a URI of NBD.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Not a device of the driver.
    #[error(transparent)]
    Device(#[from] DeviceNameError),
    /// nbds.
    #[error("{0}: attaching over TLS is not supported yet; use nbd:// or nbd+unix://")]
    Tls(Uri),
    /// nbd+vsock.
    #[error("{0}: the kernel's nbd driver takes only TCP and Unix sockets, no vsock")]
    Vsock(Uri),
    /// TLS that cannot be had.
    #[error(transparent)]
    Encryption(#[from] TlsError),
    /// `--connections`.
    #[error("--connections {0}: say a number from 1 to {CONNECTIONS_MAX}")]
    Connections(usize),
    /// One of the timeouts.
    #[error("{option} {seconds}: at most {} seconds (a day)", TIMEOUT_MAX.as_secs())]
    Timeout {
        /// Which.
        option: &'static str,
        /// What was typed.
        seconds: u64,
    },
    /// `--block-size`.
    #[error(
        "--block-size {typed}: say a power of two from {BLOCK_SIZE_MIN} to {page_size} (this machine's page)"
    )]
    BlockSize {
        /// What was typed.
        typed: u32,
        /// The most the driver takes.
        page_size: u32,
    },
}

impl AttachConfig {
    /// Gives meaning to what was typed, on a machine of this page size.
    pub fn new(typed: &cli::Attach, page_size: u32) -> Result<AttachConfig, ConfigError> {
        let uri = reachable(&typed.uri)?;
        if !(1..=CONNECTIONS_MAX).contains(&typed.connections) {
            return Err(ConfigError::Connections(typed.connections));
        }
        if let Some(block_size) = typed.block_size {
            let in_range = (BLOCK_SIZE_MIN..=page_size).contains(&block_size);
            if !in_range || !block_size.is_power_of_two() {
                return Err(ConfigError::BlockSize { typed: block_size, page_size });
            }
        }
        Ok(AttachConfig {
            uri,
            device: typed.device.as_deref().map(str::parse).transpose()?,
            connections: typed.connections,
            timeout: seconds("--timeout", typed.timeout)?,
            dead_connection_timeout: seconds(
                "--dead-connection-timeout",
                typed.dead_connection_timeout.unwrap_or(if typed.keep { KEPT_SECONDS } else { 0 }),
            )?,
            block_size: typed.block_size,
            access: if typed.read_only { Access::ReadOnly } else { Access::AsOffered },
            keep: if typed.keep { Keep::Reconnect } else { Keep::No },
            output: output(typed.json),
        })
    }
}

/// Reads a URI and refuses what the driver cannot reach.
fn reachable(typed: &str) -> Result<Uri, ConfigError> {
    let uri: Uri = typed.parse()?;
    if matches!(uri.transport, Transport::Vsock { .. }) {
        return Err(ConfigError::Vsock(uri));
    }
    if uri.tls == Tls::Required {
        return Err(ConfigError::Tls(uri));
    }
    Ok(uri)
}

impl DetachConfig {
    /// Gives meaning to what was typed.
    pub fn new(typed: &cli::Detach) -> Result<DetachConfig, ConfigError> {
        let insistence = if typed.force { Insistence::Force } else { Insistence::Refuse };
        Ok(DetachConfig { device: typed.device.parse()?, insistence })
    }
}

impl StatusConfig {
    /// Gives meaning to what was typed.
    pub fn new(typed: &cli::Status) -> Result<StatusConfig, ConfigError> {
        let device = typed.device.as_deref().map(str::parse).transpose()?;
        Ok(StatusConfig { device, output: output(typed.json) })
    }
}

impl InfoConfig {
    /// Gives meaning to what was typed.
    pub fn new(typed: &cli::Info) -> Result<InfoConfig, ConfigError> {
        let uri: Uri = typed.uri.parse()?;
        let tls = match uri.tls {
            Tls::Off => None,
            Tls::Required => {
                let dir = typed.tls_certificates.as_deref().or(uri.certificates.as_deref());
                let host = match &uri.transport {
                    Transport::Tcp { host, .. } => host,
                    Transport::Unix { .. } | Transport::Vsock { .. } => "localhost",
                };
                Some(Connector::open(dir, typed.tls_hostname.as_deref().unwrap_or(host))?)
            }
        };
        Ok(InfoConfig { uri, tls, output: output(typed.json) })
    }
}

fn output(json: bool) -> Output {
    if json { Output::Json } else { Output::Human }
}

fn seconds(option: &'static str, seconds: u64) -> Result<Duration, ConfigError> {
    let duration = Duration::from_secs(seconds);
    if duration > TIMEOUT_MAX { Err(ConfigError::Timeout { option, seconds }) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn attach(arguments: &[&str]) -> Result<AttachConfig, String> {
        let words = ["nbd-attach", "attach"].iter().chain(arguments);
        match cli::Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            cli::Command::Attach(typed) => AttachConfig::new(&typed, 4096).map_err(|error| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let config = attach(&["nbd://host/x"]).unwrap();
        assert_eq!((config.connections, config.device, config.block_size), (1, None, None));
        assert_eq!(config.timeout, Duration::from_secs(10));
        assert_eq!(config.dead_connection_timeout, Duration::ZERO);
        assert_eq!((config.access, config.output), (Access::AsOffered, Output::Human));
    }

    #[test]
    fn a_device_that_is_kept_waits_for_its_server() {
        let config = attach(&["nbd://host/x", "--keep"]).unwrap();
        assert_eq!(
            (config.keep, config.dead_connection_timeout),
            (Keep::Reconnect, Duration::from_secs(3600))
        );
        let config = attach(&["nbd://host/x", "--keep", "--dead-connection-timeout", "5"]).unwrap();
        assert_eq!(config.dead_connection_timeout, Duration::from_secs(5));
    }

    #[test]
    fn every_misuse_gets_a_sentence() {
        for (arguments, part) in [
            (&["http://host/x"][..], "NBD"),
            (&["nbds://host/x"], "TLS is not supported yet"),
            (&["nbds+unix:///x?socket=/s"], "TLS is not supported yet"),
            (&["nbd+vsock://2/x"], "no vsock"),
            (&["nbds+vsock://2/x"], "no vsock"),
            (&["nbd://h", "--device", "/dev/sda"], "say /dev/nbdN"),
            (&["nbd://h", "--device", "/dev/nbd0p1"], "name the whole device"),
            (&["nbd://h", "--connections", "0"], "from 1 to 64"),
            (&["nbd://h", "--connections", "65"], "from 1 to 64"),
            (&["nbd://h", "--timeout", "86401"], "at most 86400"),
            (&["nbd://h", "--dead-connection-timeout", "99999999"], "at most 86400"),
            (&["nbd://h", "--block-size", "3000"], "power of two"),
            (&["nbd://h", "--block-size", "256"], "from 512 to 4096"),
            (&["nbd://h", "--block-size", "8192"], "from 512 to 4096"),
            (&[], "<URI>"),
        ] {
            let error = attach(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
