//! A device that does not answer any more, and that nobody keeps: whether it does, and new connections for it.

use crate::bounded::{Child, TooSlow, bounded};
use crate::config::AttachConfig;
use crate::device::Index;
use crate::host::Host;
use crate::identifier::{self, Id};
use crate::netlink::client::Socket;
use crate::opener::{Expected, OpenError, Opener};
use crate::registry::{Phase, Record};
use crate::sysfs::DeviceDir;
use nix::libc::{EIO, O_DIRECT};
use nix::sys::socket::{getsockopt, sockopt};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// For connecting, for TLS and for the handshake, each.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// The driver is quick, unless another device's server hangs.
const DRIVER_PATIENCE: Duration = Duration::from_secs(20);
/// A request may wait for its time to run out once, and be sent again.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);
/// The driver may take this long to see that a connection is dead.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);
/// The largest block the driver makes.
const BLOCK_MAX: usize = 4096;

/// Why a device counts as dead.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It said so.
    #[error("reading it fails: {0}")]
    Read(#[from] io::Error),
    /// It says nothing.
    #[error("reading it gives {0}")]
    Silent(#[from] TooSlow),
}

/// What became of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revived {
    /// The driver took so many.
    Adopted(usize),
    /// It took none: to it, no connection is dead.
    NothingDead,
}

/// Reads the first block, past all caches. Another process does it: who waits for a device cannot end.
///
/// # Errors
/// It cannot be read.
pub async fn probe(device: &DeviceDir) -> Result<(), ProbeError> {
    let child = Child::of_ours(["probe".into(), device.index.node()]);
    Ok(bounded(PROBE_PATIENCE, move || child.finished()).await??)
}

/// What that process does. Its exit code is the error number.
#[must_use]
pub fn probe_only(node: &Path) -> i32 {
    let read = || -> io::Result<()> {
        let mut device = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(node)?;
        // Around the cache the memory has to be aligned, as blocks are.
        let mut memory = vec![0; 2 * BLOCK_MAX];
        let start = memory.as_ptr().align_offset(BLOCK_MAX).min(BLOCK_MAX);
        let block = &mut memory[start..start + BLOCK_MAX];
        if device.read(block)? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    };
    read().map_or_else(|error| error.raw_os_error().unwrap_or(EIO), |()| 0)
}

/// Gives a device new connections for those that are dead, if its server is still what it was.
///
/// # Errors
/// There is no such server.
pub async fn revive(
    config: &AttachConfig,
    host: &Host,
    device: &DeviceDir,
    record: &Record,
) -> Result<Revived, OpenError> {
    let opener = Opener::knowing(&config.uri, config.tls.as_ref(), &record.ends);
    let (told, size) = (record.told(), device.size()?);
    let mut adopted = 0;
    while adopted < record.connections.len().max(1) {
        let opened = opener.open(Expected::Same(&told, size), OPEN_PATIENCE).await?;
        let socket = Socket::new(opened.socket);
        if !offer(host, device.index, record, &socket).await? {
            break;
        }
        adopted += 1;
    }
    Ok(if adopted == 0 { Revived::NothingDead } else { Revived::Adopted(adopted) })
}

/// Of a device without a time limit nobody can tell; a read will.
async fn offer(host: &Host, index: Index, record: &Record, socket: &Socket) -> io::Result<bool> {
    let unlimited = record.attach.timeout == Some(0);
    let until = Instant::now() + ADOPTION_PATIENCE;
    loop {
        let offered = host.netlink.reconnect(index, &record.backend, socket.clone(), DRIVER_PATIENCE).await;
        offered.map_err(io::Error::other)?;
        if unlimited || is_adopted(socket)? {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        sleep(POLL).await;
    }
}

/// Whether the driver has taken a connection: it says yes also where it drops it, but one that it takes gets the
/// device's timeout.
///
/// # Errors
/// It cannot be told.
pub fn is_adopted(socket: &Socket) -> io::Result<bool> {
    let timeout = getsockopt(&**socket, sockopt::SendTimeout)?;
    Ok(timeout.tv_sec() > 0)
}

impl Record {
    /// What can be known of an attachment again: how it was asked for, and what its server says now.
    ///
    /// # Errors
    /// The server does not answer, or has not what the device needs.
    pub async fn rebuilt(config: &AttachConfig, backend: &str, size: u64) -> Result<Record, OpenError> {
        let opener = Opener::new(&config.uri, config.tls.as_ref());
        let opened = opener.open(Expected::Anything, OPEN_PATIENCE).await?;
        let mut before = opened.told.clone();
        before.export.size = before.export.size.max(size);
        crate::same::check(&before, size, &opened.told)?;
        let id = identifier::read(backend).and_then(|told| told.id).and_then(|id| id.parse::<Id>().ok());
        let mut typed = config.typed.clone();
        typed.id = typed.id.or(id.map(|id| id.to_string()));
        Ok(Record { phase: Phase::Ready, ..Record::new(backend, &typed, &opened.told) })
    }
}
