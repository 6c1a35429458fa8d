//! `nbd-attach attach`: from a URI to a device that works, or to nothing at all.
//!
//! The handshakes are done here, on sockets of our own; the kernel inherits them with CONNECT.
//! From that moment a device may exist, and every way out but success takes it back.

pub mod claim;
pub mod existing;
pub mod geometry;
pub mod settle;
pub mod undo;

use crate::config::{AttachConfig, Keep, Output};
use crate::device::Index;
use crate::dial::hasten;
use crate::driver::{self, DriverError};
use crate::event::now;
use crate::host::Host;
use crate::identifier::{self, Id};
use crate::interrupt::Interrupt;
use crate::netlink::client::{Connect, NetlinkError, Socket};
use crate::opener::{Ends, OpenError, Opener};
use crate::registry::{Connection, Record, Remembered};
use crate::tls::kernel::Cipher;
use claim::{ClaimError, claim};
use common::handshake::Export;
use common::proto::TransmissionFlags;
use existing::{ExistingError, existing};
use geometry::{Geometry, GeometryError};
use serde::Serialize;
use settle::{SettleError, Verdict, settle};
use std::io::{self, Write};
use std::time::Duration;
use undo::{Attempt, UndoError};

/// For connecting, for TLS and for the NBD handshake of one connection, each.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
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
    /// As what.
    pub id: Option<String>,
    /// What `/sys/block/nbdN/backend` says.
    pub backend: String,
}

/// A device that works, and what it was made of.
#[derive(Debug)]
pub struct Held {
    /// What was attached.
    pub attached: Attached,
    /// What is remembered of it.
    pub record: Record,
    /// Our own descriptors of its connections; none if somebody else made them.
    pub sockets: Vec<Socket>,
    /// What the kernel encrypts with, if we know.
    pub cipher: Option<Cipher>,
}

/// What attaching led to.
#[derive(Debug)]
pub enum Outcome {
    /// A new device.
    Made(Held),
    /// The device that bears the id already, with what is remembered of it, if anything is.
    There(Attached, Option<Record>),
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No driver, or no right to use it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No connection.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The id is taken.
    #[error(transparent)]
    Existing(#[from] ExistingError),
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
) -> Result<Outcome, AttachError> {
    driver::check_privilege()?;
    driver::ensure_loaded(&host.sysfs).await?;
    let Some(id) = &config.id else {
        return attach_anew(config, host, interrupt, out).await.map(Outcome::Made);
    };
    // Held until the kernel knows the name, so that it is given once.
    let _turn = existing::turn(host, id).await?;
    match existing(config, host, id)? {
        Some((attached, record)) => {
            print(&attached, config.output, out)?;
            Ok(Outcome::There(attached, record))
        }
        None => attach_anew(config, host, interrupt, out).await.map(Outcome::Made),
    }
}

async fn attach_anew(
    config: &AttachConfig,
    host: &Host,
    interrupt: &mut Interrupt,
    out: &mut dyn Write,
) -> Result<Held, AttachError> {
    let opener = Opener::new(&config.uri, config.tls.as_ref());
    let mut device = config.device;
    for _ in 0..ROUNDS_MAX {
        let links = tokio::select! {
            links = open_links(config, &opener) => links?,
            signal = interrupt.caught() => return Err(AttachError::Interrupted(signal)),
        };
        let geometry = Geometry::decide(config, &links.told, host.page_size)?;
        let backend = identifier::create(&config.uri, config.id.as_ref())?;
        let attempt = Attempt { backend, sockets: links.sockets.clone() };
        match make(config, host, interrupt, out, &attempt, &geometry, device).await {
            Ok(Made::Device(attached)) => return Ok(hold(config, host, attached, links)),
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

/// Remembers what was made. A device works without that, only this tool then knows less of it.
fn hold(config: &AttachConfig, host: &Host, attached: Attached, links: Links) -> Held {
    let record = Record {
        backend: attached.backend.clone(),
        attach: config.typed.clone(),
        export: Remembered::from(&links.told[0]),
        cipher: links.cipher.map(|cipher| format!("{:?}", cipher.suite)),
        attached_at: now(),
        reconnected_at: None,
        reconnects: 0,
        keeper: None,
        connections: vec![Connection::Unknown; config.connections],
        ends: links.ends,
        events: vec![],
    };
    let remembered = Index::new(attached.index)
        .map_err(io::Error::other)
        .and_then(|index| host.registry.remember(index, &record));
    if let Err(error) = remembered {
        tracing::warn!("the device will not be remembered: {error}");
    }
    Held { attached, record, sockets: links.sockets, cipher: links.cipher }
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
            directory.announce();
            let attached = describe(config, attempt, geometry, index);
            print(&attached, config.output, out)
                .map_err(|error| AttachError::Print { device: index, error })?;
            Ok(Made::Device(attached))
        }
    }
}

/// Connections whose handshake is done, and what each was told.
struct Links {
    sockets: Vec<Socket>,
    told: Vec<Export>,
    ends: Vec<Option<Ends>>,
    cipher: Option<Cipher>,
}

/// Connects and negotiates, as often as asked.
async fn open_links(config: &AttachConfig, opener: &Opener<'_>) -> Result<Links, AttachError> {
    let mut links = Links { sockets: vec![], told: vec![], ends: vec![], cipher: None };
    for number in 1..=config.connections {
        let opened = opener.open(OPEN_PATIENCE).await?;
        tracing::debug!("connection {number}: {:?}", opened.export);
        if config.connections > 1 && !opened.export.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
            // Servers that allow one connection may let the second one wait for ever.
            return Err(GeometryError::SingleConnection.into());
        }
        if config.keep == Keep::Reconnect {
            hasten(&opened.socket, config.timeout);
        }
        links.sockets.push(Socket::new(opened.socket));
        links.told.push(opened.export);
        links.ends.push(opened.ends);
        links.cipher = opened.cipher;
    }
    Ok(links)
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
        id: config.id.as_ref().map(Id::to_string),
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
