//! Takes back a CONNECT, whether its answer was heard or not.
//!
//! The device is found by its backend identifier, never by a remembered index, so what is
//! disconnected is always our own.

use crate::device::Index;
use crate::host::Host;
use crate::netlink::client::{NetlinkError, Socket};
use crate::netlink::message::ClientFlags;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A healthy driver answers within milliseconds.
const GENTLE_PATIENCE: Duration = Duration::from_secs(3);
/// With the sockets shut down, nothing is left for it to wait for.
const FORCED_PATIENCE: Duration = Duration::from_secs(10);
/// udev may have the node open for a moment; the device lives until it closes.
const GONE_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A device that exists, or may exist, because of us.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The identifier it bears.
    pub backend: String,
    /// Its connections, still ours as well as the kernel's.
    pub sockets: Vec<Socket>,
}

/// The device could not be removed again.
#[derive(Debug, thiserror::Error)]
#[error("{device} could not be detached again ({why}); `nbd-attach detach --force {device}` may")]
pub struct UndoError {
    /// What is left.
    pub device: Index,
    /// Why.
    pub why: String,
}

impl Attempt {
    /// Makes sure that no device bears our identifier any more.
    pub async fn undo(&self, host: &Host) -> Result<(), UndoError> {
        // Answers come in order: once STATUS is answered, so is any CONNECT before it.
        if let Err(NetlinkError::Deadline(_)) = host.netlink.status(GENTLE_PATIENCE).await {
            self.shut_down();
            // Whatever it says, sysfs tells the truth below.
            let _ = host.netlink.status(FORCED_PATIENCE).await;
        }
        let Some(device) = self.find(host) else { return Ok(()) };
        let stuck = |why: String| UndoError { device, why };
        match host.netlink.disconnect(device, GENTLE_PATIENCE).await {
            Err(NetlinkError::Deadline(_)) => self.shut_down(),
            other => other.map_err(|error| stuck(error.to_string()))?,
        }
        let until = Instant::now() + GONE_PATIENCE;
        while self.find(host).is_some() {
            if Instant::now() > until {
                return Err(stuck("something keeps it open".into()));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Removes the device node too, so that the next attachment finds a new one.
    pub async fn destroy(&self, host: &Host, device: Index) -> Result<(), UndoError> {
        let destroy = ClientFlags::DESTROY_ON_DISCONNECT;
        let flagged = host.netlink.client_flags(device, Some(&self.backend), destroy, GENTLE_PATIENCE).await;
        self.undo(host).await?;
        let stuck = |why: String| UndoError { device, why };
        flagged.map_err(|error| stuck(error.to_string()))?;
        let until = Instant::now() + GONE_PATIENCE;
        while host.sysfs.device(device).exists() && Instant::now() < until {
            sleep(POLL).await;
        }
        Ok(())
    }

    fn find(&self, host: &Host) -> Option<Index> {
        host.sysfs.find_backend(&self.backend).ok().flatten().map(|device| device.index)
    }

    /// Rescues a driver that waits for a server that does not read.
    fn shut_down(&self) {
        for socket in &self.sockets {
            // One that is dead already is fine.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}
