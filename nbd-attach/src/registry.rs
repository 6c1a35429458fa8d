//! What this tool remembers of its devices: a file each in `/run/nbd-attach`, which is in memory.
//!
//! The kernel is what counts: a record is believed only while its identifier is the one the device bears.
//! It tells a keeper that is started anew what it needs, and everybody else what the keeper knows.

use crate::cli;
use crate::device::Index;
use crate::event::{Entry, Event, now};
use crate::identifier::Id;
use crate::opener::Ends;
use crate::sysfs::DeviceDir;
use common::handshake::{BlockSizes, Export};
use common::proto::TransmissionFlags;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Events that a record keeps.
const EVENTS_MAX: usize = 64;

/// The directory.
#[derive(Clone, Debug)]
pub struct Registry {
    root: PathBuf,
}

/// What is remembered of one attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What the device bears.
    pub backend: String,
    /// How it was attached.
    pub attach: cli::Attach,
    /// What the server said.
    pub export: Remembered,
    /// What the kernel encrypts with.
    pub cipher: Option<String>,
    /// Seconds since 1970.
    pub attached_at: f64,
    /// When a connection was last made again, likewise.
    pub reconnected_at: Option<f64>,
    /// How often that was.
    pub reconnects: u64,
    /// Who reconnects it.
    pub keeper: Option<u32>,
    /// How its connections are, as far as the keeper knows.
    pub connections: Vec<Connection>,
    /// The ends of each.
    pub ends: Vec<Option<Ends>>,
    /// What happened last.
    pub events: Vec<Entry>,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// It lives.
    Alive,
    /// It is dead, and being made again.
    Dead,
    /// It was made by a keeper that has ended, or nobody looks.
    Unknown,
}

/// What a server said about an export, [`Export`] for a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Bytes.
    pub size_bytes: u64,
    /// Transmission flags as on the wire.
    pub flags: u16,
    /// Minimum, preferred, maximum payload.
    pub block_sizes: Option<[u32; 3]>,
    /// Text for people, which tells the mode and the epoch if the server is ours.
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
    pub fn told(&self, word: &str) -> Option<&str> {
        told(self.description.as_deref()?, word)
    }
}

/// The value of a `word=` in a description, as our server has them.
pub(crate) fn told<'a>(description: &'a str, word: &str) -> Option<&'a str> {
    let words = description.split([' ', ';']);
    words.filter_map(|text| text.strip_prefix(word)?.strip_prefix('=')).next()
}

impl Record {
    /// Adds an event, and gives it with its number and time.
    pub fn add(&mut self, device: Index, event: Event) -> Entry {
        let number = self.events.last().map_or(1, |last| last.number + 1);
        let entry = Entry { number, time: now(), device: device.to_string(), event };
        if self.events.len() == EVENTS_MAX {
            self.events.remove(0);
        }
        self.events.push(entry.clone());
        entry
    }
}

/// A right that ends with the process, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Registry {
    /// This machine's.
    #[must_use]
    pub fn system() -> Registry {
        Registry::at("/run/nbd-attach")
    }

    /// Elsewhere.
    pub fn at(root: impl Into<PathBuf>) -> Registry {
        Registry { root: root.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is remembered of the present attachment of a device.
    #[must_use]
    pub fn record(&self, device: &DeviceDir) -> Option<Record> {
        let text = fs::read(self.file(device.index, "json")).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (device.backend().as_deref() == Some(record.backend.as_str())).then_some(record)
    }

    /// Remembers it, whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn remember(&self, index: Index, record: &Record) -> io::Result<()> {
        self.create()?;
        // Every writer writes its own, and the last one counts.
        let partial = self.file(index, &format!("{}.new", std::process::id()));
        fs::write(&partial, serde_json::to_vec(record)?)?;
        fs::rename(partial, self.file(index, "json"))
    }

    /// Forgets an attachment that has ended; not the one that may have followed it on the same device.
    pub fn forget(&self, index: Index, backend: &str) {
        let record = fs::read(self.file(index, "json")).ok();
        let record = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        let gone = [
            ("json", record.is_some_and(|record| record.backend == backend)),
            ("let-go", self.is_to_let_go(index, backend)),
        ];
        for (what, _) in gone.into_iter().filter(|(_, ours)| *ours) {
            // Somebody else may have been quicker.
            let _ = fs::remove_file(self.file(index, what));
        }
    }

    /// Asks whoever keeps a device to end its connections and make no more.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn ask_to_let_go(&self, index: Index, backend: &str) -> io::Result<()> {
        self.create()?;
        fs::write(self.file(index, "let-go"), backend)
    }

    /// Whether that was asked of this attachment.
    #[must_use]
    pub fn is_to_let_go(&self, index: Index, backend: &str) -> bool {
        fs::read_to_string(self.file(index, "let-go")).is_ok_and(|asked| asked == backend)
    }

    /// The right to reconnect a device; none while another process has it.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keeper(&self, index: Index) -> io::Result<Option<Lock>> {
        let file = self.open(&format!("{}.keeper", index.name()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The right to attach something by this id, for which it waits.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn naming(&self, id: &Id) -> io::Result<Lock> {
        let file = self.open(&format!("{id}.id"))?;
        file.lock()?;
        Ok(Lock { _file: file })
    }

    fn open(&self, name: &str) -> io::Result<File> {
        self.create()?;
        File::options().create(true).append(true).open(self.root.join(name))
    }

    fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.root).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot use {}: {error}", self.root.display()))
        })
    }

    fn file(&self, index: Index, extension: &str) -> PathBuf {
        self.root.join(format!("{}.{extension}", index.name()))
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
