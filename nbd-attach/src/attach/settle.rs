//! After CONNECT: makes the device fit the server, and waits until it can really be used.
//!
//! The driver knows neither the server's longest payload nor how to forget what the device's last
//! server could do, so the queue's limits are set and checked here. Opening the device makes the
//! kernel read its partition table, so an open that returns means the partitions are there too.

use super::geometry::Geometry;
use crate::bounded::{TooSlow, bounded};
use crate::sysfs::{DeviceDir, DeviceNumber};
use crate::usage::block_device_number;
use common::proto::TransmissionFlags;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What recent kernels choose by themselves; 6.1 would send 128 KiB at once.
const REQUEST_KB: u32 = 1280;
/// Where nothing but udev makes device nodes, they take a moment.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
/// On top of the request timeout, after which a dead server's reads fail by themselves.
const PROBE_SLACK: Duration = Duration::from_secs(5);
/// When requests may take for ever, the first one still may not.
const PROBE_PATIENCE_MIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Limits that must be zero unless the server offers the command; 6.12 forgets to reset the first.
const GRANTED: [(&str, TransmissionFlags); 2] = [
    ("queue/write_zeroes_max_bytes", TransmissionFlags::SEND_WRITE_ZEROES),
    ("queue/discard_max_bytes", TransmissionFlags::SEND_TRIM),
];

/// How the device turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ready for use.
    Usable,
    /// It believes that the server can do something that only its last one could.
    Stale,
}

/// Why the device is no good.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The node does not lead to the device.
    #[error(
        "{node} does not lead to the device the kernel made (number {number}): is /dev mounted or udev running?"
    )]
    Node {
        /// `/dev/nbdN`.
        node: PathBuf,
        /// What it should be.
        number: DeviceNumber,
    },
    /// Not what CONNECT asked for.
    #[error("the device has {found} bytes instead of {wanted}")]
    Size {
        /// What the kernel shows.
        found: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// The first block cannot be read.
    #[error("the device cannot be read: {0}; the server accepted the connection but does not serve it")]
    Read(io::Error),
    /// The server is silent.
    #[error("the device cannot be read: {0}; the server accepted the connection but does not serve it")]
    Silent(#[from] TooSlow),
    /// The queue would send more than the server takes.
    #[error("queue/max_sectors_kb could not be set to {kb}, the most the server takes: {error}")]
    Limit {
        /// The server's limit.
        kb: u32,
        /// Why.
        error: io::Error,
    },
    /// sysfs is not what it should be.
    #[error("the kernel does not show the device in sysfs: {0}")]
    Sysfs(#[from] io::Error),
}

/// Sets the queue's limits, then reads the first block through the device.
pub async fn settle(
    device: &DeviceDir,
    geometry: &Geometry,
    timeout: Duration,
) -> Result<Verdict, SettleError> {
    for (limit, needs) in GRANTED {
        if device.number::<u64>(limit)? > 0 && !geometry.flags.contains(needs) {
            return Ok(Verdict::Stale);
        }
    }
    fit_rotation(device, geometry);
    fit_request_size(device, geometry)?;
    let size = device.size()?;
    if size != geometry.size {
        return Err(SettleError::Size { found: size, wanted: geometry.size });
    }
    let node = wait_for_node(device).await?;
    let block_size = geometry.block_size;
    let patience = timeout.max(PROBE_PATIENCE_MIN) + PROBE_SLACK;
    let found = bounded(patience, move || probe(&node, block_size)).await?.map_err(SettleError::Read)?;
    if found != geometry.size {
        return Err(SettleError::Size { found, wanted: geometry.size });
    }
    Ok(Verdict::Usable)
}

/// 6.1 ignores the server's word, 6.12 never forgets it; it is only a hint, so failing is no harm.
fn fit_rotation(device: &DeviceDir, geometry: &Geometry) {
    let wanted = u8::from(geometry.flags.contains(TransmissionFlags::ROTATIONAL));
    if device.number::<u8>("queue/rotational").is_ok_and(|now| now != wanted)
        && let Err(error) = device.write("queue/rotational", wanted)
    {
        tracing::debug!("queue/rotational stays as it is: {error}");
    }
}

fn fit_request_size(device: &DeviceDir, geometry: &Geometry) -> Result<(), SettleError> {
    let now: u32 = device.number("queue/max_sectors_kb")?;
    let hardware: u32 = device.number("queue/max_hw_sectors_kb")?;
    let wanted = REQUEST_KB.min(geometry.payload_max_kb).min(hardware);
    if now == wanted {
        return Ok(());
    }
    match device.write("queue/max_sectors_kb", wanted) {
        Ok(()) => Ok(()),
        Err(error) if now > geometry.payload_max_kb => Err(SettleError::Limit { kb: wanted, error }),
        Err(error) => {
            tracing::debug!("queue/max_sectors_kb stays at {now}: {error}");
            Ok(())
        }
    }
}

async fn wait_for_node(device: &DeviceDir) -> Result<PathBuf, SettleError> {
    let (node, number) = (device.index.node(), device.device_number()?);
    let until = Instant::now() + NODE_PATIENCE;
    while block_device_number(&node) != Some(number) {
        if Instant::now() > until {
            return Err(SettleError::Node { node, number });
        }
        sleep(POLL).await;
    }
    Ok(node)
}

/// Opens the device, reads its first block and returns its size.
fn probe(node: &Path, block_size: u32) -> io::Result<u64> {
    let mut device = File::open(node)?;
    let mut block = vec![0; block_size as usize];
    device.read_exact(&mut block)?;
    device.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Index;
    use crate::sysfs::Sysfs;

    fn device(now_kb: &str) -> (tempfile::TempDir, DeviceDir) {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("block/nbd0/queue");
        std::fs::create_dir_all(&queue).unwrap();
        for (name, value) in [
            ("max_sectors_kb", now_kb),
            ("max_hw_sectors_kb", "32768\n"),
            ("write_zeroes_max_bytes", "4294966784\n"),
            ("rotational", "1\n"),
        ] {
            std::fs::write(queue.join(name), value).unwrap();
        }
        let device = Sysfs::at(dir.path()).device(Index::new(0).unwrap());
        (dir, device)
    }

    fn geometry(payload_max_kb: u32) -> Geometry {
        let flags = TransmissionFlags::HAS_FLAGS;
        Geometry { size: 1 << 20, tail: 0, block_size: 512, flags, payload_max_kb }
    }

    #[test]
    fn requests_grow_to_what_is_sensible_and_shrink_to_what_the_server_takes() {
        for (now, payload, expected) in [("128\n", 32768, 1280), ("1280\n", 64, 64), ("64\n", 512, 512)] {
            let (_dir, device) = device(now);
            fit_request_size(&device, &geometry(payload)).unwrap();
            assert_eq!(device.number::<u32>("queue/max_sectors_kb").unwrap(), expected);
        }
    }

    #[test]
    fn a_last_servers_rotation_is_forgotten() {
        let (_dir, device) = device("128\n");
        fit_rotation(&device, &geometry(128));
        assert_eq!(device.number::<u8>("queue/rotational").unwrap(), 0);
    }

    #[tokio::test]
    async fn a_last_servers_zeroes_are_noticed() {
        let (_dir, device) = device("128\n");
        let verdict = settle(&device, &geometry(128), Duration::ZERO).await.unwrap();
        assert_eq!(verdict, Verdict::Stale);
    }
}
