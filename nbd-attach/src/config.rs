//! What the command line means: every value checked and typed, every refusal a sentence.

mod choice;
mod error;

pub use choice::{Access, Epoch, Insistence, Keep, Mounts, Output};
pub use error::ConfigError;

use crate::cli::{self, FOREVER_SECONDS};
use crate::device::{Index, Named};
use crate::identifier::Id;
use crate::tls::{Connector, Preference, TlsError};
use common::uri::{Tls, Transport, Uri};
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

/// Connections per device. The driver makes one hardware queue per CPU at most; more sockets than
/// this are idle spares, and each costs the server memory.
pub const CONNECTIONS_MAX: usize = 64;
/// A day: the driver multiplies by its tick rate in 32 bits.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// How long requests wait for a server to come back, where somebody reconnects and nothing else was said: an
/// hour.
pub const KEPT_SECONDS: u64 = 3600;
/// How long a request may take, where nobody reconnects and nothing else was said: so long take gigabytes to flush.
pub const TIMEOUT_SECONDS: u64 = 60;
/// The same where somebody reconnects, for whom it is how long a recovery takes at least; he raises it if he must.
pub const KEPT_TIMEOUT_SECONDS: u64 = 10;
/// The smallest block the driver accepts.
pub const BLOCK_SIZE_MIN: u32 = 512;

/// How a device is to be attached.
#[derive(Clone)]
pub struct AttachConfig {
    /// What was typed, for those who attach the same again. Its paths are absolute.
    pub typed: cli::Attach,
    /// Where the export is.
    pub uri: Uri,
    /// How to encrypt, where the URI says so.
    pub tls: Option<Connector>,
    /// A name for the device.
    pub id: Option<Id>,
    /// The device asked for, if any.
    pub device: Option<Index>,
    /// At least one.
    pub connections: usize,
    /// Zero is for ever.
    pub timeout: Duration,
    /// Zero is not to wait.
    pub dead_connection_timeout: Duration,
    /// How long to wait for a server that is not there yet.
    pub wait: Duration,
    /// What to do about a server that cannot tell when it has lost writes.
    pub epoch: Epoch,
    /// Between two looks whether the export has grown; zero is never.
    pub growth_interval: Duration,
    /// Records of TLS after which a connection is made anew, if not as the cipher wants it.
    pub renew_after: Option<u64>,
    /// What was asked for, if anything.
    pub block_size: Option<u32>,
    /// Whether writing is wanted.
    pub access: Access,
    /// What becomes of the device when its server goes away.
    pub keep: Keep,
    /// How to print the result.
    pub output: Output,
}

/// How devices are to be detached.
#[derive(Clone, Debug)]
pub struct DetachConfig {
    /// Which; none for all that this tool attached.
    pub device: Option<Named>,
    /// What to do about a device in use.
    pub insistence: Insistence,
    /// What to do about its file systems.
    pub mounts: Mounts,
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

/// How an attached device is to be kept.
#[derive(Clone, Debug)]
pub struct KeepConfig {
    /// Which.
    pub device: Named,
    /// How long a request may wait, if not as before.
    pub timeout: Option<Duration>,
    /// How long requests wait for a new connection, if not as before.
    pub dead_connection_timeout: Option<Duration>,
    /// How to print the events.
    pub output: Output,
}

/// What is to be shown, once or for ever.
#[derive(Clone, Debug)]
pub struct StatusConfig {
    /// One device, or all attached ones.
    pub device: Option<Named>,
    /// How.
    pub output: Output,
}

impl AttachConfig {
    /// Gives meaning to what was typed, on a machine of this page size.
    pub fn new(typed: &cli::Attach, page_size: u32) -> Result<AttachConfig, ConfigError> {
        let (uri, typed) = reachable(typed)?;
        let certificates = typed.tls_certificates.as_deref();
        let tls = encryption(&uri, certificates, typed.tls_hostname.as_deref(), typed.tls_cipher)?;
        if tls.is_none() {
            not_encrypted(&typed)?;
        }
        let timeout =
            typed.timeout.unwrap_or(if typed.keep { KEPT_TIMEOUT_SECONDS } else { TIMEOUT_SECONDS });
        if typed.keep && timeout == 0 {
            return Err(ConfigError::KeepForEver);
        }
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
            tls,
            id: typed.id.as_deref().map(str::parse).transpose()?,
            device: typed.device.as_deref().map(str::parse).transpose()?,
            connections: typed.connections,
            timeout: seconds("--timeout", timeout)?,
            wait: Duration::from_secs(typed.wait.unwrap_or(0)),
            epoch: if typed.require_epoch { Epoch::Required } else { Epoch::Optional },
            dead_connection_timeout: seconds(
                "--dead-connection-timeout",
                typed.dead_connection_timeout.unwrap_or(if typed.keep { KEPT_SECONDS } else { 0 }),
            )?,
            growth_interval: seconds("--growth-interval", typed.growth_interval)?,
            renew_after: typed.renew_after,
            block_size: typed.block_size,
            access: if typed.read_only { Access::ReadOnly } else { Access::AsOffered },
            keep: if typed.keep { Keep::Reconnect } else { Keep::No },
            output: output(typed.json),
            typed,
        })
    }

    /// The same for a device that has so many connections: the driver takes no more once it is attached.
    #[must_use]
    pub fn with_connections(self, connections: usize) -> AttachConfig {
        if connections != self.connections {
            tracing::warn!(
                "the device has {connections} connections, and keeps that number until it is detached"
            );
        }
        let typed = cli::Attach { connections, ..self.typed };
        AttachConfig { connections, typed, ..self }
    }
}

impl KeepConfig {
    /// How the device is attached with these wishes in the place of what was typed then.
    #[must_use]
    pub fn applied_to(&self, typed: &cli::Attach) -> cli::Attach {
        let waits = self.dead_connection_timeout.map(|time| time.as_secs());
        // Where nobody was to reconnect, there was nothing to wait for.
        let before = typed.dead_connection_timeout.filter(|_| typed.keep);
        cli::Attach {
            keep: true,
            timeout: self.timeout.map(|time| time.as_secs()).or(typed.timeout.filter(|time| *time > 0)),
            dead_connection_timeout: waits.or(before),
            json: self.output == Output::Json,
            ..typed.clone()
        }
    }
}

/// Reads the URI, makes its paths and those beside it absolute, and refuses what the driver cannot reach.
fn reachable(typed: &cli::Attach) -> Result<(Uri, cli::Attach), ConfigError> {
    let mut uri: Uri = typed.uri.parse()?;
    match &mut uri.transport {
        Transport::Vsock { .. } => return Err(ConfigError::Vsock(uri)),
        Transport::Unix { .. } if uri.tls == Tls::Required => return Err(TlsError::OnlyTcp.into()),
        Transport::Unix { path } => *path = absolute(&path)?,
        Transport::Tcp { .. } => {}
    }
    let path = |path: &Option<PathBuf>| path.as_ref().map(absolute).transpose();
    uri.certificates = path(&uri.certificates)?;
    let tls_certificates = path(&typed.tls_certificates)?;
    let typed = cli::Attach { uri: uri.to_string(), tls_certificates, ..typed.clone() };
    Ok((uri, typed))
}

fn encryption(
    uri: &Uri,
    certificates: Option<&Path>,
    hostname: Option<&str>,
    preference: Preference,
) -> Result<Option<Connector>, TlsError> {
    if uri.tls == Tls::Off {
        return Ok(None);
    }
    let host = match &uri.transport {
        Transport::Tcp { host, .. } => host,
        Transport::Unix { .. } | Transport::Vsock { .. } => "localhost",
    };
    let certificates = certificates.or(uri.certificates.as_deref());
    Connector::open(certificates, hostname.unwrap_or(host), preference).map(Some)
}

fn not_encrypted(typed: &cli::Attach) -> Result<(), ConfigError> {
    let options = [
        ("--tls-certificates", typed.tls_certificates.is_some()),
        ("--tls-cipher", typed.tls_cipher != Preference::default()),
        ("--tls-hostname", typed.tls_hostname.is_some()),
        ("--renew-after", typed.renew_after.is_some()),
    ];
    match options.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(ConfigError::NotEncrypted(option)),
        None => Ok(()),
    }
}

impl KeepConfig {
    /// Gives meaning to what was typed.
    pub fn new(typed: &cli::Keep) -> Result<KeepConfig, ConfigError> {
        if typed.timeout == Some(0) {
            return Err(ConfigError::KeepForEver);
        }
        let dead = typed.dead_connection_timeout;
        Ok(KeepConfig {
            device: typed.device.parse()?,
            timeout: typed.timeout.map(|time| seconds("--timeout", time)).transpose()?,
            dead_connection_timeout: dead
                .map(|time| seconds("--dead-connection-timeout", time))
                .transpose()?,
            output: output(typed.json),
        })
    }
}

impl DetachConfig {
    /// Gives meaning to what was typed.
    pub fn new(typed: &cli::Detach) -> Result<DetachConfig, ConfigError> {
        let insistence = if typed.force { Insistence::Force } else { Insistence::Refuse };
        let device = typed.device.as_deref().map(str::parse).transpose()?;
        let mounts = if typed.unmount { Mounts::Unmount } else { Mounts::Leave };
        Ok(DetachConfig { device, insistence, mounts })
    }
}

impl StatusConfig {
    /// Gives meaning to what was typed.
    pub fn new(device: Option<&str>, json: bool) -> Result<StatusConfig, ConfigError> {
        Ok(StatusConfig { device: device.map(str::parse).transpose()?, output: output(json) })
    }
}

impl InfoConfig {
    /// Gives meaning to what was typed.
    pub fn new(typed: &cli::Info) -> Result<InfoConfig, ConfigError> {
        let uri: Uri = typed.uri.parse()?;
        let tls = encryption(
            &uri,
            typed.tls_certificates.as_deref(),
            typed.tls_hostname.as_deref(),
            Preference::default(),
        )?;
        Ok(InfoConfig { uri, tls, output: output(typed.json) })
    }
}

fn output(json: bool) -> Output {
    if json { Output::Json } else { Output::Human }
}

fn seconds(option: &'static str, seconds: u64) -> Result<Duration, ConfigError> {
    let duration = Duration::from_secs(seconds);
    if duration > TIMEOUT_MAX && seconds != FOREVER_SECONDS {
        Err(ConfigError::Timeout { option, seconds })
    } else {
        Ok(duration)
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
