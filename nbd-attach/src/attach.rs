//! `nbd-attach attach`: from a URI to a device that works, or to nothing at all.
//!
//! The handshakes are done here, on sockets of our own; the kernel inherits them with CONNECT.
//! From that moment a device may exist, and every way out but success takes it back.

pub mod claim;
pub mod geometry;
pub mod settle;
pub mod undo;

use crate::config::{AttachConfig, Keep, Output};
use crate::device::Index;
use crate::dial::{DialError, dial, hasten};
use crate::driver::{self, DriverError};
use crate::host::Host;
use crate::identifier;
use crate::interrupt::Interrupt;
use crate::negotiate::{NegotiateError, negotiate};
use crate::netlink::client::{Connect, NetlinkError};
use claim::{ClaimError, claim};
use common::handshake::Export;
use common::proto::TransmissionFlags;
use geometry::{Geometry, GeometryError};
use serde::Serialize;
use settle::{SettleError, Verdict, settle};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use undo::{Attempt, UndoError};

/// For the name look-up and the TCP handshake of one connection.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// For the NBD handshake of one connection.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Devices to try before giving up on finding one without stale limits. One renewal is enough
/// unless others attach and detach at the same time.
const ROUNDS_MAX: usize = 4;

/// A device that works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// `/dev/nbdN`.
    pub device: String,
    /// N.
    pub index: u32,
    /// Bytes.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The transmission flags the driver was given, by the spec's names.
    pub flags: Vec<&'static str>,
    /// How many.
    pub connections: usize,
    /// What was attached.
    pub uri: String,
    /// What `/sys/block/nbdN/backend` says.
    pub backend: String,
}

/// A device that works, and what it was made of.
#[derive(Debug)]
pub struct Held {
    /// What was attached.
    pub attached: Attached,
    /// Our own descriptors of its connections.
    pub sockets: Arc<[OwnedFd]>,
    /// What the server said about the export.
    pub export: Export,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No driver, or no right to use it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No handshake.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// No device can look like that.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The driver would not.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The device is no good.
    #[error("{device} was detached again: {error}")]
    Settle {
        /// What it was.
        device: Index,
        /// What was wrong.
        error: SettleError,
    },
    /// Every device found believed too much of its server.
    #[error("the nbd devices keep limits of earlier servers; detach everything and reload the nbd module")]
    Stale,
    /// Ctrl-C and its kin.
    #[error("interrupted by {0}; nothing stays attached")]
    Interrupted(&'static str),
    /// The result could not be printed.
    #[error("{device} was detached again, because its name could not be printed: {error}")]
    Print {
        /// What it was.
        device: Index,
        /// Why.
        error: io::Error,
    },
    /// Worse: something is left.
    #[error("{cause}; and {undo}")]
    Undo {
        /// Why it had to be undone.
        cause: Box<AttachError>,
        /// Why it could not be.
        undo: UndoError,
    },
    /// The operating system failed us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AttachError {
    /// Whether another device might have done.
    fn is_about_choice(&self) -> bool {
        matches!(
            self,
            AttachError::Claim(ClaimError::Taken { .. } | ClaimError::Netlink(NetlinkError::Refused(_)))
        )
    }
}

/// Attaches, prints the result to `out`, and leaves nothing behind when any of it fails.
pub async fn attach(
    config: &AttachConfig,
    host: &Host,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
) -> Result<Held, AttachError> {
    driver::check_privilege()?;
    driver::ensure_loaded(&host.sysfs).await?;
    let mut device = config.device;
    for _ in 0..ROUNDS_MAX {
        let (sockets, mut told) = tokio::select! {
            links = open_links(config) => links?,
            signal = interrupt.caught() => return Err(AttachError::Interrupted(signal)),
        };
        let geometry = Geometry::decide(config, &told, host.page_size)?;
        let attempt = Attempt { backend: identifier::create(&config.uri)?, sockets };
        match make(config, host, interrupt, out, &attempt, &geometry, device).await {
            Ok(Made::Device(attached)) => {
                return Ok(Held { attached, sockets: attempt.sockets, export: told.swap_remove(0) });
            }
            Ok(Made::Stale(index)) => {
                tracing::debug!("{index} keeps limits of an earlier server; making it anew");
                let cause = || Box::new(AttachError::Stale);
                attempt
                    .destroy(host, index)
                    .await
                    .map_err(|undo| AttachError::Undo { cause: cause(), undo })?;
                device = Some(index);
            }
            Err(cause) => match attempt.undo(host).await {
                // Somebody else was faster with the device made anew; any other will do.
                Ok(()) if device != config.device && cause.is_about_choice() => device = config.device,
                Ok(()) => return Err(cause),
                Err(undo) => return Err(AttachError::Undo { cause: Box::new(cause), undo }),
            },
        }
    }
    Err(AttachError::Stale)
}

enum Made {
    Device(Attached),
    Stale(Index),
}

/// One CONNECT and what must follow it. The caller takes the device back when this fails.
async fn make(
    config: &AttachConfig,
    host: &Host,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
    attempt: &Attempt,
    geometry: &Geometry,
    device: Option<Index>,
) -> Result<Made, AttachError> {
    warn(config, geometry);
    let index = claim(host, &connect(config, attempt, geometry, device)).await?;
    let directory = host.sysfs.device(index);
    let verdict = tokio::select! {
        verdict = settle(&directory, geometry, config.timeout) => verdict,
        signal = interrupt.caught() => return Err(AttachError::Interrupted(signal)),
    };
    match verdict.map_err(|error| AttachError::Settle { device: index, error })? {
        Verdict::Stale => Ok(Made::Stale(index)),
        Verdict::Usable => {
            let attached = describe(config, attempt, geometry, index);
            print(&attached, config.output, out)
                .map_err(|error| AttachError::Print { device: index, error })?;
            Ok(Made::Device(attached))
        }
    }
}

type Links = (Arc<[OwnedFd]>, Vec<Export>);

/// Connects and negotiates, as often as asked.
async fn open_links(config: &AttachConfig) -> Result<Links, AttachError> {
    let (mut sockets, mut told) = (Vec::new(), Vec::new());
    for number in 1..=config.connections {
        let mut link = dial(&config.uri.transport, DIAL_PATIENCE).await?;
        let export = negotiate(link.stream(), &config.uri.export, HANDSHAKE_PATIENCE).await?;
        tracing::debug!("connection {number}: {export:?}");
        if config.connections > 1 && !export.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
            // Servers that allow one connection may let the second one wait for ever.
            return Err(GeometryError::SingleConnection.into());
        }
        let socket = link.into_fd()?;
        if config.keep == Keep::Reconnect {
            hasten(&socket, config.timeout);
        }
        sockets.push(socket);
        told.push(export);
    }
    Ok((sockets.into(), told))
}

fn connect(config: &AttachConfig, attempt: &Attempt, geometry: &Geometry, index: Option<Index>) -> Connect {
    Connect {
        index,
        size: geometry.size,
        block_size: geometry.block_size,
        timeout: config.timeout,
        dead_connection_timeout: config.dead_connection_timeout,
        server_flags: geometry.flags.0,
        backend: attempt.backend.clone(),
        sockets: attempt.sockets.clone(),
    }
}

fn warn(config: &AttachConfig, geometry: &Geometry) {
    if geometry.tail > 0 {
        tracing::warn!(
            "the export is no multiple of the block size {}: its last {} bytes are out of reach",
            geometry.block_size,
            geometry.tail
        );
    }
    if config.timeout.is_zero() {
        tracing::warn!("--timeout 0: when the server dies, requests will hang for ever");
    }
}

fn describe(config: &AttachConfig, attempt: &Attempt, geometry: &Geometry, index: Index) -> Attached {
    Attached {
        device: index.to_string(),
        index: index.number(),
        size_bytes: geometry.size,
        block_size: geometry.block_size,
        read_only: geometry.flags.contains(TransmissionFlags::READ_ONLY),
        flags: geometry.flags.names().collect(),
        connections: config.connections,
        uri: config.uri.to_string(),
        backend: attempt.backend.clone(),
    }
}

fn print(attached: &Attached, output: Output, out: &mut dyn Write) -> io::Result<()> {
    match output {
        Output::Human => writeln!(out, "{}", attached.device)?,
        Output::Json => writeln!(out, "{}", serde_json::to_string(attached)?)?,
    }
    out.flush()
}
