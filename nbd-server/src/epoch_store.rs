//! Where the [record](crate::durability::epoch) of an export is stored: with a regular file as its
//! extended attribute, else in a state directory, else nowhere, which makes every start of the
//! server look like a loss to clients that reconnect.
//!
//! The record says which storage it speaks of (see `identity`), and has an open file description of its
//! own: Linux tells a failed write-back once per description, and the one that answers FLUSH must be told.

mod attribute;
mod identity;
mod state_file;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::device::Io;
use crate::durability::Mode;
use crate::durability::epoch::{Epoch, EpochStore, Findings, Record, Unstable, Verdict, start};
use crate::engine::{Pool, Share};
use attribute::Attribute;
use identity::Identity;
use state_file::StateFile;

/// What is opened for writing, and what it is to be served as.
pub struct Opened<'a> {
    /// The description that reads and writes the storage; just opened.
    pub file: &'a File,
    /// Where it is.
    pub path: &'a Path,
    /// The mode in force.
    pub mode: Mode,
}

/// The epoch of a regular file or a block device that is opened for writing.
///
/// A place where nothing can be stored is no reason not to serve: the epoch is then a new one at each
/// start.
///
/// # Errors
/// The storage cannot be looked at, or an old record can be neither replaced nor removed.
pub fn open(opened: &Opened<'_>, state_dir: Option<&Path>, pool: &Pool) -> anyhow::Result<Epoch> {
    let path = opened.path.display();
    let identity = Identity::of(opened.file, opened.path)?;
    let boot = boot()?;
    let (place, mut record) = match find(opened, &identity, state_dir) {
        Some((place, text)) => {
            let record = judge(opened, &identity, text.as_deref(), boot);
            (place, record)
        }
        None => {
            tracing::info!(
                %path,
                "the epoch cannot be stored: after a restart, clients that reconnect will assume data loss \
                 (--state-dir names a place for it)"
            );
            return Ok(unstored(Record::unknown(fresh(), boot, opened.mode)));
        }
    };
    record.mode = opened.mode;
    record.boot = boot;
    record.clean = false;
    identity.mark_instance();
    let stored = Stored { place, identity, share: pool.share() };
    // The description that answers FLUSH is told of a failed write-back by itself.
    if let Err(error) = stored.write(&record).or_else(|_| stored.write(&record)) {
        tracing::warn!(%path, %error, "the epoch cannot be stored: after a restart, clients that reconnect will assume data loss");
        // An old record must not go on to say what is no longer true.
        stored.place.remove().with_context(|| format!("{path}: the epoch's old record cannot be removed"))?;
        return Ok(unstored(Record { epoch: fresh(), ..record }));
    }
    Ok(Epoch { record, store: Box::new(Arc::new(stored)) })
}

/// The place for the record, and what stands there.
fn find(
    opened: &Opened<'_>,
    identity: &Identity,
    state_dir: Option<&Path>,
) -> Option<(Place, Option<String>)> {
    let path = opened.path.display();
    if let Some(file) = identity.file() {
        match Attribute::open(file) {
            Ok(Some((attribute, text))) => return Some((Place::Attribute(attribute), text)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%path, %error, "the epoch's record cannot be read: the epoch is a new one");
                return Some((Place::Attribute(Attribute::at(file)), None));
            }
        }
    }
    match StateFile::open(state_dir?, opened.path) {
        Ok((state_file, text)) => Some((Place::StateFile(state_file), text)),
        Err(error) => {
            tracing::warn!(%path, error = format!("{error:#}"), "the state directory cannot be used");
            None
        }
    }
}

/// What holds for a server that finds `text` as the record.
fn judge(opened: &Opened<'_>, identity: &Identity, text: Option<&str>, boot: u128) -> Record {
    let path = opened.path.display();
    // Nothing was acknowledged under a new epoch yet.
    let renewed = || Record { unstable: Unstable::None, ..Record::unknown(fresh(), boot, opened.mode) };
    let Some(text) = text else { return renewed() };
    let Ok(left) = text.parse::<Record>() else {
        tracing::warn!(%path, "the epoch's record is damaged, or of another version: the epoch is a new one");
        return renewed();
    };
    let found = identity.compare(text, &left, boot);
    let poison = left.poison.clone().filter(|_| found.same_storage);
    match start(&left, found) {
        Verdict::Keep => left,
        Verdict::Renew(reason) => {
            tracing::warn!(%path, reason = reason.text(), "the epoch is a new one");
            // What the last server left in the host's cache is there, and may still be lost.
            let is_left = !left.clean && found.same_boot && left.unstable > Unstable::None;
            let unstable = if is_left { Unstable::HostCache } else { Unstable::None };
            Record { poison, unstable, ..renewed() }
        }
        Verdict::KeepIfSynced => match opened.file.sync_data() {
            Ok(()) => Record { unstable: Unstable::None, ..left },
            Err(error) => {
                tracing::error!(%path, %error, "what the last server acknowledged could not be made stable");
                Record { poison: Some(error.to_string()), ..renewed() }
            }
        },
    }
}

/// The epoch of what dies with the server.
#[must_use]
pub fn volatile() -> Epoch {
    unstored(Record { unstable: Unstable::None, ..Record::unknown(fresh(), 0, Mode::Unsafe) })
}

/// The epoch of what has nothing to lose.
#[must_use]
pub fn nothing_to_lose() -> Epoch {
    unstored(Record { unstable: Unstable::None, ..Record::unknown(0, 0, Mode::Unsafe) })
}

fn unstored(record: Record) -> Epoch {
    Epoch { record, store: Box::new(Nowhere) }
}

fn fresh() -> u64 {
    let mut bytes = [0; 8];
    let drawn = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(drawn, Ok(bytes.len()), "the kernel gives a few random bytes whole");
    u64::from_ne_bytes(bytes)
}

/// Which boot of the host this is.
fn boot() -> anyhow::Result<u128> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).with_context(|| format!("{path} holds no number"))
}

/// Stores nothing.
struct Nowhere;

impl EpochStore for Nowhere {
    fn persist(&self, _: Record) -> Io<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn mark_instance(&self) {}

    fn fresh_epoch(&self) -> u64 {
        fresh()
    }
}

/// A place where a record is stored.
enum Place {
    Attribute(Attribute),
    StateFile(StateFile),
}

impl Place {
    fn remove(&self) -> io::Result<()> {
        match self {
            Place::Attribute(attribute) => attribute.remove(),
            Place::StateFile(state_file) => state_file.remove(),
        }
    }
}

/// Stores the record of one storage.
struct Stored {
    place: Place,
    identity: Identity,
    /// Its own, so that it does not wait behind the jobs of the storage.
    share: Share,
}

impl Stored {
    /// Makes the record durable.
    fn write(&self, record: &Record) -> io::Result<()> {
        match &self.place {
            Place::Attribute(attribute) => attribute.write(record, &self.identity),
            Place::StateFile(state_file) => {
                let unchanged = if record.clean { self.identity.unchanged_now()? } else { String::new() };
                state_file.write(&format!("{record} {}{unchanged}", self.identity.words()))
            }
        }
    }
}

impl EpochStore for Arc<Stored> {
    fn persist(&self, record: Record) -> Io<'_, ()> {
        let stored = self.clone();
        Box::pin(self.share.run(move || stored.write(&record)))
    }

    fn mark_instance(&self) {
        self.identity.mark_instance();
    }

    fn fresh_epoch(&self) -> u64 {
        fresh()
    }
}

/// The value of a word of the form `name=value`.
fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// A word that is a decimal number.
fn number(text: &str, name: &str) -> Option<u64> {
    word(text, name)?.parse().ok()
}

/// Nothing about the storage is as the record says.
const OTHER: Findings =
    Findings { same_storage: false, same_boot: false, same_instance: false, unchanged: false };
