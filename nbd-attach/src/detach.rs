//! `nbd-attach detach`: only a device that nothing uses, only after what was written has reached
//! the server, and only the attachment that was looked at.
//!
//! The device is held open exclusively meanwhile, so that nobody mounts it in between; this also
//! finds users that this mount namespace does not see.

mod disconnect;

pub use disconnect::disconnect_only;

use crate::bounded::{Child, TooSlow, bounded};
use crate::config::{DetachConfig, Insistence};
use crate::device::Index;
use crate::driver::{self, DriverError};
use crate::host::{Host, NotAttached};
use crate::identifier;
use crate::netlink::client::NetlinkError;
use crate::sysfs::DeviceDir;
use crate::usage::{Use, uses_of};
use disconnect::{disconnect, hurry};
use nix::libc::{EBUSY, EIO, O_EXCL};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a program may have the device open without being one of its users.
const GLANCE_PATIENCE: Duration = Duration::from_secs(1);
/// Opening waits for a partition scan at most.
const OPEN_PATIENCE: Duration = Duration::from_secs(15);
/// A server may have gigabytes of ours to put on its disk.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);
/// Who insists has given up on a server that takes longer than this.
const FORCED_FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// What the server has got is answered within this, if ever.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);
/// After DISCONNECT the device lives until the last program closes it, udev among them.
const GONE_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The device is free again.
    Gone,
    /// Disconnected, but its users still have it open; it is free once they close it.
    Lingering,
}

/// Why the device is still attached.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// No right to.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Nothing to detach.
    #[error(transparent)]
    NotAttached(#[from] NotAttached),
    /// Not one of ours.
    #[error("{device} was attached by another tool ({}); --force detaches it all the same", owner(.backend.as_deref()))]
    Foreign {
        /// Which.
        device: Index,
        /// Its identifier, if it has one.
        backend: Option<String>,
    },
    /// Known users.
    #[error("{device} is in use: {}; --force detaches it all the same", listed(.uses))]
    InUse {
        /// Which.
        device: Index,
        /// By whom.
        uses: Vec<Use>,
    },
    /// Unknown users.
    #[error("{0} is in use in another mount namespace or container; --force detaches it all the same")]
    Held(Index),
    /// The server has not got everything.
    #[error(
        "{device} could not be flushed ({error}); --force detaches it all the same and may lose what was written"
    )]
    Flush {
        /// Which.
        device: Index,
        /// Why.
        error: FlushError,
    },
    /// It was detached and attached again by others meanwhile.
    #[error("{0} changed hands meanwhile; nothing was done")]
    Changed(Index),
    /// The driver would not.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The driver waits for the server.
    #[error(
        "the driver did not let go of {device} in time: its server is connected but reads nothing; it ends when the \
         server{} does",
        .server.map(|pid| format!(" (process {pid}), which `kill -9 {pid}` ends,")).unwrap_or_default()
    )]
    Stuck {
        /// Which.
        device: Index,
        /// The server's process, if it is on this machine.
        server: Option<i32>,
    },
    /// sysfs is not what it should be.
    #[error("looking at the device failed: {0}")]
    Io(#[from] io::Error),
}

/// Why written data may not have reached the server.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// It said so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It says nothing.
    #[error("the server gave {0}")]
    Silent(#[from] TooSlow),
}

fn owner(backend: Option<&str>) -> String {
    backend.map_or_else(|| "it left no identifier".into(), |backend| format!("its identifier is {backend:?}"))
}

fn listed(uses: &[Use]) -> String {
    uses.iter().map(Use::to_string).collect::<Vec<_>>().join(", ")
}

/// Detaches, or says why not.
pub async fn detach(config: &DetachConfig, host: &Host) -> Result<(Index, Detached), DetachError> {
    driver::check_privilege()?;
    let device = host.find(&config.device)?;
    let index = device.index;
    let insist = config.insistence;
    let backend = device.backend();
    if backend.as_deref().and_then(identifier::read).is_none() {
        let foreign = DetachError::Foreign { device: index, backend: backend.clone() };
        object(insist, foreign)?;
    }
    let uses = lasting_uses(&device).await?;
    if !uses.is_empty() {
        object(insist, DetachError::InUse { device: index, uses: uses.clone() })?;
    }
    let held = hold(&device, insist, &uses).await?;
    flush(&device, insist, &uses, held.as_ref()).await?;
    if device.backend() != backend {
        return Err(DetachError::Changed(index));
    }
    settle(&device, insist).await;
    if insist == Insistence::Force {
        hurry(&device, host, backend.as_deref()).await;
    }
    disconnect(&device, host, insist).await?;
    drop(held);
    let ended = wait_until_gone(&device, backend.as_deref(), &uses).await?;
    if ended == Detached::Gone {
        device.announce();
        host.registry.forget(index, backend.as_deref().unwrap_or_default());
    }
    Ok((index, ended))
}

/// What is in flight when the device is disconnected fails; readers may still have something there.
async fn settle(device: &DeviceDir, insist: Insistence) {
    let patience = if insist == Insistence::Force { Duration::ZERO } else { SETTLE_PATIENCE };
    let until = Instant::now() + patience;
    while device.inflight().is_ok_and(|counts| counts != [0, 0]) && Instant::now() < until {
        sleep(POLL).await;
    }
}

/// An objection ends the command, unless the user insists; then it is a warning.
fn object(insist: Insistence, objection: DetachError) -> Result<(), DetachError> {
    match insist {
        Insistence::Refuse => Err(objection),
        Insistence::Force => {
            tracing::warn!(
                "--force: {}",
                objection.to_string().replace("--force detaches it all the same", "forced")
            );
            Ok(())
        }
    }
}

/// What uses the device, but for programs that only took a look, as udev does.
async fn lasting_uses(device: &DeviceDir) -> Result<Vec<Use>, DetachError> {
    let until = Instant::now() + GLANCE_PATIENCE;
    loop {
        let uses = uses_of(device)?;
        let mut programs = uses.iter().map(|used| matches!(used, Use::Program { .. }));
        if uses.is_empty() || !programs.all(|is_program| is_program) || Instant::now() > until {
            return Ok(uses);
        }
        sleep(POLL).await;
    }
}

/// Opens the device exclusively. For reading only: closing a device that was open for writing
/// makes udev open it, which would keep it busy.
async fn hold(device: &DeviceDir, insist: Insistence, uses: &[Use]) -> Result<Option<File>, DetachError> {
    let node = device.index.node();
    let open = move |flags| OpenOptions::new().read(true).custom_flags(flags).open(node);
    let opened = {
        let open = open.clone();
        bounded(OPEN_PATIENCE, move || open(O_EXCL)).await
    };
    let objection = match opened {
        Ok(Ok(file)) => return Ok(Some(file)),
        Ok(Err(error)) if error.raw_os_error() == Some(EBUSY) => {
            if uses.is_empty() {
                object(insist, DetachError::Held(device.index))?;
            }
            return Ok(bounded(OPEN_PATIENCE, move || open(0)).await.ok().and_then(Result::ok));
        }
        Ok(Err(error)) => FlushError::Io(error),
        Err(slow) => FlushError::Silent(slow),
    };
    object(insist, DetachError::Flush { device: device.index, error: objection })?;
    Ok(None)
}

async fn flush(
    device: &DeviceDir,
    insist: Insistence,
    uses: &[Use],
    held: Option<&File>,
) -> Result<(), DetachError> {
    if held.is_none() {
        // It could not even be opened.
        return Ok(());
    }
    let mounts = uses.iter().filter_map(|used| match used {
        Use::Mount(point) => Some(point.clone()),
        Use::Swap(_) | Use::Holder(_) | Use::Program { .. } => None,
    });
    let files: Vec<PathBuf> = mounts.chain([device.index.node()]).collect();
    let patience = match insist {
        Insistence::Refuse => FLUSH_PATIENCE,
        Insistence::Force => FORCED_FLUSH_PATIENCE,
    };
    let flushed = bounded(patience, move || flush_in_child(&files));
    let error = match flushed.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => FlushError::Io(error),
        Err(slow) => FlushError::Silent(slow),
    };
    object(insist, DetachError::Flush { device: device.index, error })
}

/// A process that waits for a dead server cannot end, so the waiting is left to another one.
fn flush_in_child(files: &[PathBuf]) -> io::Result<()> {
    Child::of_ours(std::iter::once("flush".into()).chain(files.iter().cloned())).finished()
}

/// What that process does: flushes devices, and file systems by any file on them. Its exit code is
/// the error number.
pub fn flush_files(files: &[PathBuf]) -> i32 {
    let flush_one = |path: &PathBuf| {
        let file = File::open(path)?;
        if file.metadata()?.file_type().is_block_device() {
            file.sync_all()
        } else {
            Ok(nix::unistd::syncfs(file)?)
        }
    };
    let flushed: io::Result<()> = files.iter().try_for_each(flush_one);
    flushed.map_or_else(|error| error.raw_os_error().unwrap_or(EIO), |()| 0)
}

async fn wait_until_gone(
    device: &DeviceDir,
    backend: Option<&str>,
    uses: &[Use],
) -> Result<Detached, DetachError> {
    let is_ours = || device.attached() && device.backend().as_deref() == backend;
    // What is mounted keeps the device open for as long as it likes.
    let patience = if uses.is_empty() { GONE_PATIENCE } else { Duration::ZERO };
    let until = Instant::now() + patience;
    while is_ours() {
        if Instant::now() >= until {
            return Ok(Detached::Lingering);
        }
        sleep(POLL).await;
    }
    Ok(Detached::Gone)
}

#[cfg(test)]
#[path = "detach_tests.rs"]
mod tests;
