//! The epoch: a number that changes exactly when acknowledged data may have been lost.
//!
//! A live file system trusts what it wrote even before it was flushed. When the server, or its
//! host, loses such writes and the client reconnects, the file system goes on with clean pages
//! for data that no longer exists. A client that reconnects therefore compares the epoch first, as
//! NFS clients compare the write verifier (RFC 7530 §16.36).
//!
//! A [`Record`] is stored beside the storage it speaks of. It holds the epoch, and how the storage
//! was left: cleanly or not, poisoned or not, and where acknowledged data may be that is not
//! stable. [`start`] decides what a server makes of a record that it finds.

use std::fmt;
use std::str::FromStr;

use super::Mode;
use crate::device::Io;

/// Longest cause of a poison that is stored, in bytes.
const CAUSE_MAX: usize = 200;

/// Where acknowledged data may be that is not on stable storage, by how easily it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unstable {
    /// There is none.
    None,
    /// In the host's page cache or the disk's write cache; a power cut loses it.
    HostCache,
    /// In the server's memory; the end of the server loses it.
    ServerMemory,
}

/// What is stored about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The epoch.
    pub epoch: u64,
    /// Which boot of the host wrote the record (`/proc/sys/kernel/random/boot_id`).
    pub boot: u128,
    /// Where unstable data may be.
    pub unstable: Unstable,
    /// Whether the server has ended in order: nothing was unstable, and it wrote nothing since.
    pub clean: bool,
    /// The durability mode in force, for people who read the record.
    pub mode: Mode,
    /// Why every FLUSH and write fails, if they do.
    pub poison: Option<String>,
}

/// What a starting server finds out about the storage that a record speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Findings {
    /// The storage is the same file or device, and no smaller.
    pub same_storage: bool,
    /// The host has not been booted since.
    pub same_boot: bool,
    /// The kernel still has what it had in memory about the storage: it was not unmounted, evicted or
    /// detached since, so a failed write-back that nobody was told of is still told.
    pub same_instance: bool,
    /// Nothing was written to the storage since the clean end, though it may have grown.
    pub unchanged: bool,
}

/// What a record is worth to a server that starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was lost: the epoch holds.
    Keep,
    /// Nothing was lost if a sync succeeds on a description that is opened now.
    KeepIfSynced,
    /// Acknowledged data may be lost, or the storage is another one: a new epoch.
    Renew(Reason),
}

/// Why an epoch does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The record is of another file or device, or of a larger one.
    OtherStorage,
    /// The storage was written to after the server had ended.
    Changed,
    /// The server died with acknowledged data in its own memory.
    ServerDied,
    /// The host went down with acknowledged data in its cache.
    HostDied,
    /// The storage was unmounted or detached, or the kernel dropped its inode, with acknowledged data in
    /// the cache: nobody can say any more whether it was written.
    Remounted,
}

impl Reason {
    /// The reason in words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Reason::OtherStorage => "the storage is not the one that was served before",
            Reason::Changed => "the storage was changed while no server had it",
            Reason::ServerDied => "the last server died with acknowledged writes in its memory",
            Reason::HostDied => "the host went down with acknowledged writes in its cache",
            Reason::Remounted => {
                "the storage was unmounted or detached after the last server died with acknowledged \
                 writes in the host's cache"
            }
        }
    }
}

/// Decides whether the epoch of `left` holds for a server that starts on it.
#[must_use]
pub fn start(left: &Record, found: Findings) -> Verdict {
    if !found.same_storage {
        return Verdict::Renew(Reason::OtherStorage);
    }
    if left.clean {
        return if found.unchanged { Verdict::Keep } else { Verdict::Renew(Reason::Changed) };
    }
    match left.unstable {
        Unstable::None => Verdict::Keep,
        Unstable::ServerMemory => Verdict::Renew(Reason::ServerDied),
        Unstable::HostCache if !found.same_boot => Verdict::Renew(Reason::HostDied),
        Unstable::HostCache if !found.same_instance => Verdict::Renew(Reason::Remounted),
        Unstable::HostCache => Verdict::KeepIfSynced,
    }
}

/// Stores the record of one export.
pub trait EpochStore: Send + Sync {
    /// Makes the record durable.
    ///
    /// An error that is marked by [`sync_failure`](crate::device::sync_failure) tells that the
    /// *storage* could not be written back: acknowledged data may be lost.
    fn persist(&self, record: Record) -> Io<'_, ()>;
    /// Has the host remember, in memory, that every failed write-back of the storage was told. Whoever meets
    /// the next one makes it forget that at once.
    fn mark_instance(&self);
    /// A number that was never an epoch before.
    fn fresh_epoch(&self) -> u64;
}

/// What an export starts with: what holds now, and where it is stored.
pub struct Epoch {
    /// What holds and is stored when the server starts.
    pub record: Record,
    /// Where changes are stored.
    pub store: Box<dyn EpochStore>,
}

impl Record {
    /// The record of a storage about which nothing is known: writes of others may be in the host's
    /// cache.
    #[must_use]
    pub fn unknown(epoch: u64, boot: u128, mode: Mode) -> Record {
        Record { epoch, boot, unstable: Unstable::HostCache, clean: false, mode, poison: None }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { epoch, boot, unstable, clean, mode, poison } = self;
        let unstable = match unstable {
            Unstable::None => "none",
            Unstable::HostCache => "host-cache",
            Unstable::ServerMemory => "server-memory",
        };
        let end = if *clean { "clean" } else { "open" };
        write!(f, "epoch={epoch:016x} boot={boot:032x} unstable={unstable} end={end} mode={mode}")?;
        let Some(cause) = poison else { return Ok(()) };
        let mut len = cause.len().min(CAUSE_MAX);
        while !cause.is_char_boundary(len) {
            len -= 1;
        }
        // One word, so that the record stays a line of words.
        write!(f, " poison={}", cause[..len].replace(|c: char| c.is_whitespace() || c.is_control(), "_"))
    }
}

/// The text is no record, or misses something that this version must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl FromStr for Record {
    type Err = Unreadable;

    /// Reads words of the form `name=value`; those with unknown names are ignored.
    fn from_str(text: &str) -> Result<Record, Unreadable> {
        let value = |name: &str| {
            text.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .ok_or(Unreadable)
        };
        Ok(Record {
            epoch: u64::from_str_radix(value("epoch")?, 16).map_err(|_| Unreadable)?,
            boot: u128::from_str_radix(value("boot")?, 16).map_err(|_| Unreadable)?,
            unstable: match value("unstable")? {
                "none" => Unstable::None,
                "host-cache" => Unstable::HostCache,
                "server-memory" => Unstable::ServerMemory,
                _ => return Err(Unreadable),
            },
            clean: match value("end")? {
                "clean" => true,
                "open" => false,
                _ => return Err(Unreadable),
            },
            mode: value("mode")?.parse().map_err(|_| Unreadable)?,
            poison: value("poison").ok().map(|cause| cause.replace('_', " ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAME: Findings =
        Findings { same_storage: true, same_boot: true, same_instance: true, unchanged: true };

    fn left(unstable: Unstable, clean: bool) -> Record {
        Record { epoch: 7, boot: 1, unstable, clean, mode: Mode::Writeback, poison: None }
    }

    #[test]
    fn a_clean_end_holds_until_somebody_writes() {
        let record = left(Unstable::None, true);
        assert_eq!(start(&record, SAME), Verdict::Keep);
        let rebooted = Findings { same_boot: false, same_instance: false, ..SAME };
        assert_eq!(start(&record, rebooted), Verdict::Keep);
        let edited = Findings { unchanged: false, ..SAME };
        assert_eq!(start(&record, edited), Verdict::Renew(Reason::Changed));
        let other = Findings { same_storage: false, ..SAME };
        assert_eq!(start(&record, other), Verdict::Renew(Reason::OtherStorage));
    }

    #[test]
    fn the_epoch_changes_when_unstable_data_is_lost_and_only_then() {
        use Unstable::{HostCache, None, ServerMemory};
        // A server that was killed wrote until then, so that nothing is known of "unchanged".
        let killed = Findings { unchanged: false, ..SAME };
        let remounted = Findings { same_instance: false, ..killed };
        let power_cut = Findings { same_boot: false, ..remounted };
        for (unstable, after_kill, after_remount, after_power_cut) in [
            (None, Verdict::Keep, Verdict::Keep, Verdict::Keep),
            (
                HostCache,
                Verdict::KeepIfSynced,
                Verdict::Renew(Reason::Remounted),
                Verdict::Renew(Reason::HostDied),
            ),
            (
                ServerMemory,
                Verdict::Renew(Reason::ServerDied),
                Verdict::Renew(Reason::ServerDied),
                Verdict::Renew(Reason::ServerDied),
            ),
        ] {
            let record = left(unstable, false);
            assert_eq!(start(&record, killed), after_kill, "{unstable:?}, killed");
            assert_eq!(start(&record, remounted), after_remount, "{unstable:?}, remounted");
            assert_eq!(start(&record, power_cut), after_power_cut, "{unstable:?}, power cut");
        }
    }

    #[test]
    fn records_survive_being_written_and_read() {
        for unstable in [Unstable::None, Unstable::HostCache, Unstable::ServerMemory] {
            let poison = (unstable == Unstable::None).then(|| "No space left on device".to_owned());
            let record = Record { epoch: u64::MAX - 1, boot: u128::MAX, poison, ..left(unstable, true) };
            assert_eq!(format!("{record} later=1").parse(), Ok(record));
        }
        let whole = left(Unstable::None, false).to_string();
        for name in ["epoch", "boot", "unstable", "end", "mode"] {
            let lacking = whole.replace(&format!("{name}="), "x=");
            assert_eq!(lacking.parse::<Record>(), Err(Unreadable), "without {name}");
        }
        for bad in ["", "1 0 0 nowhere", "epoch=x boot=0 unstable=none end=open mode=writeback"] {
            assert_eq!(bad.parse::<Record>(), Err(Unreadable), "{bad:?}");
        }
    }
}
