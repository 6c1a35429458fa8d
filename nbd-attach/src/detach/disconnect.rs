//! DISCONNECT, which the driver does not finish before a request that it is sending has been sent: a server that hangs
//! with full buffers keeps it, and everybody who asks the driver for anything, waiting.

use super::DetachError;
use crate::bounded::{Child, bounded};
use crate::device::Index;
use crate::host::Host;
use crate::netlink::client::NetlinkError;
use crate::netlink::destroy::destroy;
use crate::netlink::message::{ClientFlags, Command};
use crate::netlink::refusal::Refusal;
use crate::opener::Ends;
use crate::registry::Request;
use crate::sysfs::DeviceDir;
use nix::errno::Errno;
use nix::libc::EIO;
use std::fs::File;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// On top of the request timeout, which is what ends the driver's own waiting.
const DISCONNECT_SLACK: Duration = Duration::from_secs(20);
/// The request timeout of a device that is to be gone.
const HURRIED: Duration = Duration::from_secs(1);
/// udev and its kin look at a device that somebody closed, and close it again.
const GLANCE_PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

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
    if let Err(error) = host.registry.ask(Request::LetGo, backend.unwrap_or_default()) {
        tracing::debug!("{}: its keeper is not told: {error}", device.index);
    }
}

/// Disconnects it, whoever has it open.
pub(super) async fn disconnect(device: &DeviceDir, host: &Host) -> Result<(), DetachError> {
    let child = Child::of_ours(["disconnect".into(), device.index.node()]);
    done(device, host, Command::DISCONNECT, child).await
}

/// What became of a device that was to go when nobody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// It has gone.
    Gone,
    /// Somebody has it open.
    InUse,
}

/// Closes the device, which is held as `held`, and has it disconnected thereby if nobody else has it open. Then it is
/// as it was, and no later end of that use disconnects it.
pub(super) async fn release(
    device: &DeviceDir,
    host: &Host,
    backend: &str,
    held: File,
) -> Result<Released, DetachError> {
    let words = ["release".into(), device.index.node().into_os_string(), backend.into()];
    done(device, host, Command::RECONFIGURE, Child::of_ours(words).holding(held)).await?;
    let is_there = || device.attached() && device.backend().as_deref() == Some(backend);
    let until = Instant::now() + GLANCE_PATIENCE;
    while is_there() && Instant::now() < until {
        sleep(POLL).await;
    }
    if is_there() {
        let stay =
            host.netlink.client_flags(device.index, Some(backend), ClientFlags::NONE, DISCONNECT_SLACK);
        match stay.await {
            Ok(()) => return Ok(Released::InUse),
            // It has gone this very moment.
            Err(_) if !is_there() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Released::Gone)
}

/// Waits for a process that has the driver do something, but not for ever.
async fn done(device: &DeviceDir, host: &Host, command: Command, child: Child) -> Result<(), DetachError> {
    let request_timeout = Duration::from_millis(device.number("queue/io_timeout").unwrap_or(0));
    let patience = request_timeout + DISCONNECT_SLACK;
    match bounded(patience, move || child.finished()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(EIO));
            let refusal = Refusal { command, index: Some(device.index), errno };
            Err(NetlinkError::Refused(refusal).into())
        }
        Err(_) => Err(DetachError::Stuck { device: device.index, server: server(device, host) }),
    }
}

/// The server's process, if it is on this machine and known. Who listens for somebody else is not it.
fn server(device: &DeviceDir, host: &Host) -> Option<i32> {
    let record = host.registry.record(device)?;
    record.ends.iter().find_map(|ends| match ends {
        Some(Ends::Unix { server }) if is_server(*server) => Some(*server),
        _ => None,
    })
}

/// The kernel names whoever called listen(2): with socket activation that is systemd.
fn is_server(pid: i32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    pid > 1 && name.is_ok_and(|name| !["systemd", "init"].contains(&name.trim_end()))
}

/// What such a process does, for as long as it takes. Its exit code is the error number.
pub async fn disconnect_only(index: Index, host: &Host) -> i32 {
    code(&host.netlink.disconnect(index, Duration::MAX).await)
}

/// The same for a device that is to go when nobody has it open; the process has it open, and is about to end.
pub async fn release_only(index: Index, backend: &str, host: &Host) -> i32 {
    let flags = ClientFlags::DISCONNECT_ON_CLOSE;
    code(&host.netlink.client_flags(index, Some(backend), flags, Duration::MAX).await)
}

fn code(done: &Result<(), NetlinkError>) -> i32 {
    match done {
        Ok(()) => 0,
        Err(NetlinkError::Refused(refusal)) => refusal.errno as i32,
        Err(_) => EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_for_others_is_no_server() {
        assert!(!is_server(1) && !is_server(0) && !is_server(i32::MAX));
        assert!(is_server(std::process::id().try_into().unwrap()));
    }
}
