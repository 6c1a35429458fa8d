//! `nbd-attach status`: what is attached, as far as the kernel tells. Anyone may look.

use crate::config::{Output, StatusConfig};
use crate::device::Index;
use crate::host::Host;
use crate::identifier;
use crate::netlink::message::DeviceItem;
use crate::sysfs::DeviceDir;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

/// The driver answers at once, unless another device's server hangs and holds its lock.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// One attached device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
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
    /// What the driver says; null when it could not be asked. True does not mean that the server
    /// lives: the driver says it of every device that has a configuration.
    pub connected: Option<bool>,
    /// Requests waiting for a reply.
    pub inflight: Inflight,
    /// The request timeout; 30000 also stands for none.
    pub io_timeout_ms: Option<u64>,
    /// What was attached, when this tool did it.
    pub uri: Option<String>,
    /// The backend identifier.
    pub backend: Option<String>,
}

/// Requests waiting for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Inflight {
    /// Reads.
    pub reads: u64,
    /// Writes, and everything else.
    pub writes: u64,
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Asked for by name.
    #[error("{0} is not attached")]
    NotAttached(Index),
    /// sysfs is not what it should be, or stdout is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Prints the attached devices, or the one asked for.
pub async fn status(config: &StatusConfig, host: &Host, out: &mut dyn Write) -> Result<(), StatusError> {
    let devices = match config.device {
        Some(index) => vec![host.sysfs.device(index)],
        None => host.sysfs.devices()?,
    };
    let attached: Vec<DeviceDir> = devices.into_iter().filter(DeviceDir::attached).collect();
    if let (Some(index), []) = (config.device, &attached[..]) {
        return Err(StatusError::NotAttached(index));
    }
    let connected = if attached.is_empty() { Vec::new() } else { ask_driver(host).await };
    // A device detached while being looked at is left out.
    let rows: Vec<Row> = attached.iter().filter_map(|device| row(device, &connected).ok()).collect();
    match config.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&rows).map_err(io::Error::from)?)?,
        Output::Human if rows.is_empty() => tracing::info!("no nbd device is attached"),
        Output::Human => out.write_all(table(&rows).as_bytes())?,
    }
    Ok(out.flush()?)
}

async fn ask_driver(host: &Host) -> Vec<DeviceItem> {
    host.netlink.status(STATUS_PATIENCE).await.unwrap_or_else(|error| {
        tracing::warn!("{error}");
        Vec::new()
    })
}

fn row(device: &DeviceDir, connected: &[DeviceItem]) -> io::Result<Row> {
    let index = device.index.number();
    let backend = device.backend();
    let [reads, writes] = device.inflight()?;
    Ok(Row {
        device: device.index.to_string(),
        index,
        size_bytes: device.size()?,
        block_size: device.number("queue/logical_block_size")?,
        read_only: device.number::<u8>("ro")? != 0,
        connected: connected.iter().find(|item| item.index == index).map(|item| item.connected),
        inflight: Inflight { reads, writes },
        io_timeout_ms: device.number("queue/io_timeout").ok(),
        uri: backend.as_deref().and_then(identifier::uri_of).map(str::to_owned),
        backend,
    })
}

fn table(rows: &[Row]) -> String {
    let heading = ["DEVICE", "SIZE", "BLOCK", "MODE", "CONNECTED", "IN FLIGHT", "TIMEOUT", "URI"];
    let cells: Vec<[String; 8]> =
        std::iter::once(heading.map(str::to_owned)).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for line in &cells {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let padded: Vec<String> = padded.collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    }
    text
}

fn cells(row: &Row) -> [String; 8] {
    let connected = row.connected.map_or("?", |yes| if yes { "yes" } else { "no" });
    let named = row.uri.clone().or_else(|| row.backend.clone());
    [
        row.device.clone(),
        human_size(row.size_bytes),
        row.block_size.to_string(),
        if row.read_only { "ro" } else { "rw" }.to_owned(),
        connected.to_owned(),
        (row.inflight.reads + row.inflight.writes).to_string(),
        row.io_timeout_ms.map_or_else(|| "?".to_owned(), |ms| format!("{} s", ms / 1000)),
        named.map_or_else(|| "(attached by another tool)".to_owned(), |name| printable(&name)),
    ]
}

/// A server's or another tool's text must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Exact in bytes, short where a unit fits exactly.
pub fn human_size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::Sysfs;

    const BACKEND: &str = "nbd://host:10809/x#0123456789abcdef";

    fn tree() -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("pid", "1\n"),
            ("backend", BACKEND),
            ("size", "2048\n"),
            ("ro", "1\n"),
            ("inflight", "1 2\n"),
            ("queue/logical_block_size", "512\n"),
            ("queue/io_timeout", "10000\n"),
        ] {
            let path = dir.path().join("block/nbd3").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let sysfs = Sysfs::at(dir.path());
        (dir, sysfs)
    }

    #[test]
    fn a_row_tells_what_sysfs_and_the_driver_tell() {
        let (_dir, sysfs) = tree();
        let item = DeviceItem { index: 3, connected: true };
        let row = row(&sysfs.device(Index::new(3).unwrap()), &[item]).unwrap();
        assert_eq!((row.size_bytes, row.read_only, row.connected), (1 << 20, true, Some(true)));
        assert_eq!(row.uri.as_deref(), Some("nbd://host:10809/x"));
        let text = table(&[row]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "/dev/nbd3  1 MiB  512    ro    yes        3          10 s     nbd://host:10809/x"
        );
        assert_eq!(lines[0].find("URI"), lines[1].find("nbd://"));
    }

    #[test]
    fn sizes_are_never_rounded() {
        for (bytes, text) in
            [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (3 << 30, "3 GiB"), (1025, "1025 B")]
        {
            assert_eq!(human_size(bytes), text);
        }
    }
}
