//! What attaching leads to, for people, scripts and whoever keeps the device.

use super::geometry::Geometry;
use crate::config::{AttachConfig, Output};
use crate::device::Index;
use crate::identifier::{self, Id};
use crate::netlink::client::Socket;
use crate::registry::{Lock, Record};
use crate::sysfs::DeviceDir;
use crate::tls::kernel::Cipher;
use common::proto::TransmissionFlags;
use serde::Serialize;
use std::io::{self, Write};

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
    /// The right to keep it, where there is a place for rights.
    pub lock: Option<Lock>,
    /// Whether it is known to answer, and was told of.
    pub answer: Answer,
}

/// Whether a device is known to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was read.
    Read,
    /// Its keeper is to find out, and then to tell of it.
    Awaited,
}

/// What attaching led to.
#[derive(Debug)]
pub enum Outcome {
    /// A new device.
    Made(Box<Held>),
    /// The device that bears the id already, with what is remembered of it.
    There(Attached, Box<Record>, Answer),
}

impl Attached {
    /// A device that was just made.
    pub(super) fn made(config: &AttachConfig, backend: &str, geometry: &Geometry, index: Index) -> Attached {
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
            backend: backend.to_owned(),
        }
    }

    /// A device that was attached before, by what the kernel shows and what is remembered of it.
    ///
    /// # Errors
    /// It has gone.
    pub fn describe(device: &DeviceDir, record: Option<&Record>) -> io::Result<Attached> {
        let backend = device.backend().unwrap_or_default();
        let told = identifier::read(&backend);
        let flags = record.map(|record| TransmissionFlags(record.export.flags));
        Ok(Attached {
            device: device.index.to_string(),
            index: device.index.number(),
            size_bytes: device.size()?,
            block_size: device.number("queue/logical_block_size")?,
            read_only: device.number::<u8>("ro")? != 0,
            flags: flags.map(|flags| flags.names().collect()).unwrap_or_default(),
            connections: record.map_or(0, |record| record.connections.len()),
            uri: told.map(|told| told.uri.to_owned()).unwrap_or_default(),
            id: told.and_then(|told| told.id).map(str::to_owned),
            backend,
        })
    }

    /// Prints it for whom it is meant.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn print(&self, output: Output, out: &mut dyn Write) -> io::Result<()> {
        match output {
            Output::Human => writeln!(out, "{}", self.device)?,
            Output::Json => writeln!(out, "{}", serde_json::to_string(self)?)?,
        }
        out.flush()
    }
}
