//! `nbd-attach detach`: only a device that nothing uses, only after what was written has reached
//! the server, and only the attachment that was looked at.
//!
//! The device is held open exclusively meanwhile, so that nobody mounts it in between. Then the driver is asked to
//! disconnect it when the last one who has it open closes it, and we close it: so it goes exactly if nobody else uses
//! it, whether the kernel tells of him or not.

mod disconnect;
mod flush;

pub use disconnect::{disconnect_only, release_only};
pub use flush::{FlushError, flush_files};

use crate::bounded::bounded;
use crate::config::{DetachConfig, Insistence, Mounts};
use crate::device::Index;
use crate::driver::{self, DriverError};
use crate::host::{Host, NotAttached};
use crate::identifier;
use crate::netlink::client::NetlinkError;
use crate::registry::{Phase, Record};
use crate::sysfs::DeviceDir;
use crate::usage::{Use, uses_of};
use disconnect::{Released, disconnect, hurry, release};
use flush::flush;
use nix::libc::{EBUSY, O_EXCL};
use nix::mount::{MntFlags, umount2};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a program may have the device open without being one of its users.
const GLANCE_PATIENCE: Duration = Duration::from_secs(1);
/// Opening waits for a partition scan at most.
const OPEN_PATIENCE: Duration = Duration::from_secs(15);
/// Unmounting writes what was not written yet.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(100);
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
    /// Unknown users, who claim it for themselves.
    #[error(
        "{0} is held by somebody whom the kernel does not name, as a program in another container; --force detaches \
         it all the same"
    )]
    Held(Index),
    /// Unknown users, who do not.
    #[error(
        "{0} is in use by somebody whom the kernel does not name, or who is of another container; it stays attached; \
         --force detaches it all the same"
    )]
    Open(Index),
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

fn owner(backend: Option<&str>) -> String {
    backend.map_or_else(|| "it left no identifier".into(), |backend| format!("its identifier is {backend:?}"))
}

fn listed(uses: &[Use]) -> String {
    uses.iter().map(Use::to_string).collect::<Vec<_>>().join(", ")
}

/// The devices that are meant.
///
/// # Errors
/// There is none of that name.
pub fn meant(config: &DetachConfig, host: &Host) -> Result<Vec<DeviceDir>, DetachError> {
    driver::check_privilege()?;
    Ok(match &config.device {
        Some(name) => vec![host.find(name)?],
        None => host.ours()?,
    })
}

/// Detaches one, or says why not.
///
/// # Errors
/// It stays attached.
pub async fn detach(device: &DeviceDir, config: &DetachConfig, host: &Host) -> Result<Detached, DetachError> {
    let (index, insist) = (device.index, config.insistence);
    let backend = device.backend();
    if backend.as_deref().and_then(identifier::read).is_none() {
        let foreign = DetachError::Foreign { device: index, backend: backend.clone() };
        object(insist, foreign)?;
    }
    if config.mounts == Mounts::Unmount {
        unmount(device).await?;
    }
    let uses = lasting_uses(device).await?;
    if !uses.is_empty() {
        object(insist, DetachError::InUse { device: index, uses: uses.clone() })?;
    }
    let held = hold(device, insist, &uses).await?;
    flush(device, insist, &uses, held.as_ref()).await?;
    if device.backend() != backend {
        return Err(DetachError::Changed(index));
    }
    settle(device, insist).await;
    let ended = match (insist, held) {
        (Insistence::Refuse, Some(held)) => {
            release(device, host, backend.as_deref().unwrap_or_default(), held).await?
        }
        (_, held) => {
            hurry(device, host, backend.as_deref()).await;
            disconnect(device, host).await?;
            drop(held);
            wait_until_gone(device, backend.as_deref(), &uses).await?
        }
    };
    match ended {
        Released::Gone => {
            drop_partitions(device).await;
            device.announce();
            host.registry.forget(backend.as_deref().unwrap_or_default());
            Ok(Detached::Gone)
        }
        Released::InUse if insist == Insistence::Force => {
            note_disconnected(device, host);
            Ok(Detached::Lingering)
        }
        Released::InUse => {
            let uses = uses_of(device)?;
            Err(if uses.is_empty() {
                DetachError::Open(index)
            } else {
                DetachError::InUse { device: index, uses }
            })
        }
    }
}

/// Unmounts what is mounted of it here, the last first. What is busy stays, and is a use.
async fn unmount(device: &DeviceDir) -> Result<(), DetachError> {
    for used in uses_of(device)?.into_iter().rev() {
        let Use::Mount(point) = used else { continue };
        let at = point.clone();
        match bounded(UNMOUNT_PATIENCE, move || umount2(&at, MntFlags::UMOUNT_NOFOLLOW)).await {
            Ok(Ok(())) => tracing::info!("{} is unmounted", point.display()),
            Ok(Err(errno)) => tracing::warn!("{} stays mounted: {}", point.display(), errno.desc()),
            Err(slow) => tracing::warn!("{} stays mounted: {slow}", point.display()),
        }
    }
    Ok(())
}

/// For `status`, and for whoever attaches by the same id.
fn note_disconnected(device: &DeviceDir, host: &Host) {
    let Some(record) = host.registry.record(device) else { return };
    let record = Record { phase: Phase::Disconnected, keeper: None, ..record };
    if let Err(error) = host.registry.remember(&record) {
        tracing::debug!("{}: that it is disconnected is not remembered: {error}", device.index);
    }
}

/// Partitions outlive the disk until somebody opens it.
async fn drop_partitions(device: &DeviceDir) {
    if device.parts().is_ok_and(|parts| parts.len() > 1) {
        let node = device.index.node();
        // One that is attached anew meanwhile has its own.
        let _ = bounded(OPEN_PATIENCE, move || File::open(node)).await;
    }
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

async fn wait_until_gone(
    device: &DeviceDir,
    backend: Option<&str>,
    uses: &[Use],
) -> Result<Released, DetachError> {
    let is_ours = || device.attached() && device.backend().as_deref() == backend;
    // What is mounted keeps the device open for as long as it likes.
    let patience = if uses.is_empty() { GONE_PATIENCE } else { Duration::ZERO };
    let until = Instant::now() + patience;
    while is_ours() {
        if Instant::now() >= until {
            return Ok(Released::InUse);
        }
        sleep(POLL).await;
    }
    Ok(Released::Gone)
}

#[cfg(test)]
#[path = "detach_tests.rs"]
mod tests;
