//! DISCONNECT, which the driver does not finish before a request that it is sending has been sent: a server that hangs
//! with full buffers keeps it, and everybody who asks the driver for anything, waiting.

use super::DetachError;
use crate::bounded::{Child, bounded};
use crate::config::Insistence;
use crate::device::Index;
use crate::host::Host;
use crate::netlink::client::NetlinkError;
use crate::netlink::destroy::destroy;
use crate::netlink::message::Command;
use crate::netlink::refusal::Refusal;
use crate::opener::Ends;
use crate::sysfs::DeviceDir;
use nix::errno::Errno;
use nix::libc::EIO;
use std::io;
use std::time::Duration;

/// On top of the request timeout, which is what ends the driver's own waiting.
const DISCONNECT_SLACK: Duration = Duration::from_secs(20);
/// The request timeout of a device that is to be gone.
const HURRIED: Duration = Duration::from_secs(1);

/// Has the driver give up soon on a server that hangs: what waits for its reply would keep DISCONNECT waiting, for
/// ever if the device was attached without a timeout, and with it everybody who asks the driver for anything.
pub(super) async fn hurry(device: &DeviceDir, host: &Host, backend: Option<&str>) {
    let waits = [HURRIED, Duration::ZERO];
    if let Err(error) = host.netlink.wait_for(device.index, backend, waits, DISCONNECT_SLACK).await {
        tracing::debug!("{}: no hurry: {error}", device.index);
    }
    let record = host.registry.record(device);
    for ends in record.iter().flat_map(|record| &record.ends).flatten() {
        let Ends::Tcp { local, peer } = *ends else { continue };
        if let Err(error) = destroy(local, peer) {
            tracing::debug!("{}: the connection to {peer} is not ended: {error}", device.index);
        }
    }
    // A keeper has the sockets, and can do more than the driver does.
    if let Err(error) = host.registry.ask_to_let_go(device.index, backend.unwrap_or_default()) {
        tracing::debug!("{}: its keeper is not told: {error}", device.index);
    }
}

pub(super) async fn disconnect(
    device: &DeviceDir,
    host: &Host,
    insist: Insistence,
) -> Result<(), DetachError> {
    let request_timeout = Duration::from_millis(device.number("queue/io_timeout").unwrap_or(0));
    let patience = request_timeout + DISCONNECT_SLACK;
    let disconnected = match insist {
        Insistence::Refuse => host.netlink.disconnect(device.index, patience).await,
        Insistence::Force => {
            let child = Child::of_ours(["disconnect".into(), device.index.node()]);
            let wait = bounded(patience, move || child.finished()).await;
            wait.map_err(|_| NetlinkError::Deadline(patience))
                .and_then(|done| done.map_err(|error| refusal(device.index, &error).into()))
        }
    };
    match disconnected {
        Err(NetlinkError::Deadline(_)) => {
            let record = host.registry.record(device);
            let server = record.iter().flat_map(|record| &record.ends).find_map(|ends| match ends {
                Some(Ends::Unix { server }) => Some(*server),
                _ => None,
            });
            Err(DetachError::Stuck { device: device.index, server })
        }
        other => Ok(other?),
    }
}

/// What that process does, for as long as it takes. Its exit code is the error number.
pub async fn disconnect_only(index: Index, host: &Host) -> i32 {
    match host.netlink.disconnect(index, Duration::MAX).await {
        Ok(()) => 0,
        Err(NetlinkError::Refused(refusal)) => refusal.errno as i32,
        Err(_) => EIO,
    }
}

/// What the driver said to the other process.
fn refusal(index: Index, error: &io::Error) -> Refusal {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(EIO));
    Refusal { command: Command::DISCONNECT, index: Some(index), errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_said_to_the_other_process_is_worded() {
        let said =
            refusal(Index::new(0).unwrap(), &io::Error::from_raw_os_error(nix::libc::EINVAL)).to_string();
        assert!(said.contains("would not detach /dev/nbd0") && said.contains("going down already"), "{said}");
    }
}
