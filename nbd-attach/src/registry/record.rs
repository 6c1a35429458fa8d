//! The record of one attachment. Other releases read and write it too: what one does not know it leaves out, and what is
//! missing has a value that was true before anybody wrote it.

use crate::cli;
use crate::device::Index;
use crate::event::{Entry, Event, now};
use crate::opener::Ends;
use crate::same::Told;
use common::handshake::{BlockSizes, Export};
use common::proto::TransmissionFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::fs;
use std::path::Path;

/// What this release writes. It is a hint for people: whatever the number, what is understood is used.
pub const VERSION: u32 = 2;
/// Events that a record keeps.
const EVENTS_MAX: usize = 64;

/// What is remembered of one attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`]; release 0.1.0 wrote none.
    #[serde(default)]
    pub version: u32,
    /// What the device bears.
    pub backend: String,
    /// How it was attached.
    pub attach: cli::Attach,
    /// What the server said.
    #[serde(default)]
    pub export: Remembered,
    /// Its epoch.
    #[serde(default)]
    pub epoch: Option<String>,
    /// How far the device has come.
    #[serde(default, deserialize_with = "or_default")]
    pub phase: Phase,
    /// What the kernel encrypts with.
    #[serde(default)]
    pub cipher: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub attached_at: f64,
    /// When a connection was last made again, likewise.
    #[serde(default)]
    pub reconnected_at: Option<f64>,
    /// How often that was.
    #[serde(default)]
    pub reconnects: u64,
    /// Who reconnects it.
    #[serde(default)]
    pub keeper: Option<u32>,
    /// How its connections are, as far as the keeper knows.
    #[serde(default, deserialize_with = "each_or_default")]
    pub connections: Vec<Connection>,
    /// The ends of each.
    #[serde(default, deserialize_with = "each_or_default")]
    pub ends: Vec<Option<Ends>>,
    /// What happened last.
    #[serde(default, deserialize_with = "understood")]
    pub events: Vec<Entry>,
}

/// How far a device has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The kernel is being asked for it, or it has not been looked at yet.
    Made,
    /// It was read, and its name told.
    #[default]
    Ready,
    /// It was disconnected by force, and goes when its users close it.
    Disconnected,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// It lives.
    Alive,
    /// It is dead, and being made again if somebody keeps the device.
    Dead,
    /// It was made by a keeper that has ended, or nobody looks.
    #[default]
    Unknown,
}

/// What a server said about an export, [`Export`] for a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Bytes.
    pub size_bytes: u64,
    /// Transmission flags as on the wire.
    pub flags: u16,
    /// Minimum, preferred, maximum payload.
    pub block_sizes: Option<[u32; 3]>,
    /// Text for people, which tells the mode if the server is ours.
    pub description: Option<String>,
}

impl From<&Export> for Remembered {
    fn from(export: &Export) -> Remembered {
        let sizes = |sizes: BlockSizes| [sizes.minimum, sizes.preferred, sizes.maximum_payload];
        Remembered {
            size_bytes: export.size,
            flags: export.flags.0,
            block_sizes: export.block_sizes.map(sizes),
            description: export.description.clone(),
        }
    }
}

impl Remembered {
    /// What was said.
    #[must_use]
    pub fn export(&self) -> Export {
        let sizes = |[minimum, preferred, maximum_payload]: [u32; 3]| BlockSizes {
            minimum,
            preferred,
            maximum_payload,
        };
        Export {
            size: self.size_bytes,
            flags: TransmissionFlags(self.flags),
            block_sizes: self.block_sizes.map(sizes),
            name: None,
            description: self.description.clone(),
        }
    }

    /// The value of a `word=` in the description, as our server has them.
    #[must_use]
    pub fn word(&self, wanted: &str) -> Option<&str> {
        word(self.description.as_deref()?, wanted)
    }
}

/// The value of a `word=` in a description, as our server has them.
#[must_use]
pub fn word<'a>(description: &'a str, wanted: &str) -> Option<&'a str> {
    let words = description.split([' ', ';']);
    words.filter_map(|text| text.strip_prefix(wanted)?.strip_prefix('=')).next()
}

impl Record {
    /// Of an attachment that begins.
    #[must_use]
    pub fn new(backend: &str, attach: &cli::Attach, told: &Told) -> Record {
        Record {
            version: VERSION,
            backend: backend.to_owned(),
            attach: attach.clone(),
            export: Remembered::from(&told.export),
            epoch: told.epoch.clone(),
            phase: Phase::Made,
            cipher: None,
            attached_at: now(),
            reconnected_at: None,
            reconnects: 0,
            keeper: None,
            connections: vec![Connection::Unknown; attach.connections],
            ends: vec![None; attach.connections],
            events: vec![],
        }
    }

    /// Reads one, if there is one that can be understood.
    #[must_use]
    pub fn read(path: &Path) -> Option<Record> {
        let text = fs::read(path).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let epoch = record.epoch.clone().or_else(|| record.first_epoch());
        Some(Record { epoch, ..record })
    }

    /// Release 0.1.0 knew the epoch by the description alone.
    fn first_epoch(&self) -> Option<String> {
        (self.version == 0).then(|| self.export.word("epoch").map(str::to_owned)).flatten()
    }

    /// What the server said that was last accepted.
    #[must_use]
    pub fn told(&self) -> Told {
        Told { export: self.export.export(), epoch: self.epoch.clone(), identity: None }
    }

    /// Adds an event, and gives it with its number and time.
    pub fn add(&mut self, device: Index, event: Event) -> Entry {
        let number = self.events.last().map_or(1, |last| last.number + 1);
        let entry = Entry { number, time: now(), device: device.to_string(), event };
        if self.events.len() >= EVENTS_MAX {
            self.events.remove(0);
        }
        self.events.push(entry.clone());
        entry
    }
}

fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(from: D) -> Result<T, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(from)?).unwrap_or_default())
}

/// Places count: what is not understood leaves its place.
fn each_or_default<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    let values = Vec::<serde_json::Value>::deserialize(from)?.into_iter();
    Ok(values.map(|value| serde_json::from_value(value).unwrap_or_default()).collect())
}

fn understood<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Entry>, D::Error> {
    let values = Vec::<serde_json::Value>::deserialize(from)?.into_iter();
    Ok(values.filter_map(|value| serde_json::from_value(value).ok()).collect())
}
