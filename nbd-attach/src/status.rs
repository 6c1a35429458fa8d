//! `nbd-attach status`: what is attached, as far as the kernel tells. Anyone may look.

use crate::config::{Output, StatusConfig};
use crate::event::{Reason, now};
use crate::health::{Health, State};
use crate::host::{Host, NotAttached};
use crate::identifier;
use crate::registry::{Connection, Registry};
use crate::size::human_size;
use crate::sysfs::DeviceDir;
use common::proto::TransmissionFlags;
use common::uri::Uri;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write};

/// What the JSON of `status` promises; a number for changes that a script has to know of.
const VERSION: u32 = 3;

/// The JSON of `status`.
#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    devices: &'a [Row],
}

/// One attached device. What is null is not known: the device was attached by another tool, or nobody keeps it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `/dev/nbdN`.
    pub device: String,
    /// N.
    pub index: u32,
    /// As what it was attached.
    pub id: Option<String>,
    /// What was attached, when this tool did it.
    pub uri: Option<String>,
    /// The export's name.
    pub export: Option<String>,
    /// Bytes.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The transmission flags, by the spec's names.
    pub flags: Option<Vec<&'static str>>,
    /// When the server makes writes durable, where it says so.
    pub durability: Option<String>,
    /// What the server changes when it has lost acknowledged writes, where it says so.
    pub epoch: Option<String>,
    /// What the kernel encrypts with.
    pub cipher: Option<String>,
    /// What it is good for now.
    pub state: State,
    /// How each connection is.
    pub connections: Option<Vec<Connection>>,
    /// The process that reconnects it.
    pub keeper: Option<u32>,
    /// How often a connection was made again.
    pub reconnects: Option<u64>,
    /// Seconds since a connection was last made again.
    pub seconds_since_reconnect: Option<f64>,
    /// Seconds since it was attached.
    pub seconds_attached: Option<f64>,
    /// What is wrong, in words.
    pub trouble: Option<String>,
    /// Since when, in seconds.
    pub seconds_in_trouble: Option<f64>,
    /// Why there is no new connection, for scripts.
    pub reason: Option<Reason>,
    /// Requests waiting for a reply.
    pub inflight: Inflight,
    /// The request timeout; 30000 also stands for none.
    pub io_timeout_ms: Option<u64>,
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
    #[error(transparent)]
    NotAttached(#[from] NotAttached),
    /// sysfs is not what it should be, or stdout is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Prints the attached devices, or the one asked for.
///
/// The driver itself is not asked: it would only say that the device has a configuration, and might hang.
pub fn status(config: &StatusConfig, host: &Host, out: &mut dyn Write) -> Result<(), StatusError> {
    let devices = match &config.device {
        Some(name) => vec![host.find(name)?],
        None => host.sysfs.devices()?,
    };
    let attached = devices.iter().filter(|device| device.attached());
    // A device detached while being looked at is left out.
    let rows: Vec<Row> = attached.filter_map(|device| row(device, &host.registry).ok()).collect();
    match config.output {
        Output::Json => {
            let report = Report { version: VERSION, devices: &rows };
            writeln!(out, "{}", serde_json::to_string(&report).map_err(io::Error::from)?)?;
        }
        Output::Human if rows.is_empty() => tracing::info!("no nbd device is attached"),
        Output::Human => out.write_all(table(&rows).as_bytes())?,
    }
    Ok(out.flush()?)
}

fn row(device: &DeviceDir, registry: &Registry) -> io::Result<Row> {
    let backend = device.backend();
    let told = backend.as_deref().and_then(identifier::read);
    let record = registry.record(device);
    let record = record.as_ref();
    let health = Health::of(record, backend.as_deref(), registry);
    let export = record.map(|record| &record.export);
    let durability = export.and_then(|export| export.word("durability")).map(str::to_owned);
    let since = |then: f64| (now() - then).max(0.0);
    let uri = told.map(|told| told.uri.to_owned());
    let [reads, writes] = device.inflight()?;
    Ok(Row {
        device: device.index.to_string(),
        index: device.index.number(),
        id: told.and_then(|told| told.id).map(str::to_owned),
        export: uri.as_deref().and_then(|uri| Some(uri.parse::<Uri>().ok()?.export)),
        uri,
        size_bytes: device.size()?,
        block_size: device.number("queue/logical_block_size")?,
        read_only: device.number::<u8>("ro")? != 0,
        flags: export.map(|export| TransmissionFlags(export.flags).names().collect()),
        durability,
        epoch: record.and_then(|record| record.epoch.clone()),
        cipher: record.and_then(|record| record.cipher.clone()),
        state: health.state,
        connections: record.map(|_| health.connections),
        keeper: health.keeper,
        reconnects: record.map(|record| record.reconnects),
        seconds_since_reconnect: record.and_then(|record| record.reconnected_at).map(since),
        seconds_attached: record.map(|record| since(record.attached_at)),
        trouble: health.trouble,
        seconds_in_trouble: health.since.map(since),
        reason: health.reason,
        inflight: Inflight { reads, writes },
        io_timeout_ms: device.number("queue/io_timeout").ok(),
        backend,
    })
}

fn table(rows: &[Row]) -> String {
    let heading = [
        "DEVICE",
        "ID",
        "SIZE",
        "MODE",
        "DURABILITY",
        "ALIVE",
        "KEPT",
        "SINCE",
        "IN FLIGHT",
        "TIMEOUT",
        "URI",
    ];
    let cells: Vec<_> = std::iter::once(heading.map(str::to_owned)).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    let troubles = std::iter::once(None).chain(rows.iter().map(|row| row.trouble.as_deref()));
    for (line, trouble) in cells.iter().zip(troubles) {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let padded: Vec<String> = padded.collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
        if let Some(trouble) = trouble {
            let _ = writeln!(text, "  ! {}", printable(trouble));
        }
    }
    text
}

fn cells(row: &Row) -> [String; 11] {
    let dash = || "-".to_owned();
    let named = row.uri.clone().or_else(|| row.backend.clone());
    let count = |all: &Vec<Connection>, how| all.iter().filter(|connection| **connection == how).count();
    let alive = row.connections.as_ref().map(|all| match count(all, Connection::Unknown) {
        unknown if unknown == all.len() => format!("?/{unknown}"),
        0 => format!("{}/{}", count(all, Connection::Alive), all.len()),
        unknown => format!("{}+{unknown}?/{}", count(all, Connection::Alive), all.len()),
    });
    // A clock that was set forward makes nonsense of it; the machine is not older than it is.
    let since = row.seconds_since_reconnect.or(row.seconds_attached).filter(|seconds| *seconds <= uptime());
    [
        row.device.clone(),
        row.id.clone().unwrap_or_else(dash),
        human_size(row.size_bytes),
        if row.read_only { "ro" } else { "rw" }.to_owned(),
        row.durability.clone().unwrap_or_else(dash),
        alive.unwrap_or_else(dash),
        row.keeper.map_or_else(|| "no".to_owned(), |pid| pid.to_string()),
        since.map_or_else(dash, human_time),
        (row.inflight.reads + row.inflight.writes).to_string(),
        row.io_timeout_ms.map_or_else(dash, |ms| format!("{} s", ms / 1000)),
        named
            .filter(|name| !name.is_empty())
            .map_or_else(|| "(attached by another tool)".to_owned(), |name| printable(&name)),
    ]
}

/// Seconds since the machine was started; for ever if nobody knows.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(f64::INFINITY)
}

/// Whole seconds, minutes, hours or days.
fn human_time(seconds: f64) -> String {
    let units = [("d", 86400.0), ("h", 3600.0), ("min", 60.0)];
    match units.iter().find(|(_, length)| seconds >= *length) {
        Some((unit, length)) => format!("{:.0} {unit}", (seconds / length).floor()),
        None => format!("{:.0} s", seconds.floor()),
    }
}

/// A server's or another tool's text must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
