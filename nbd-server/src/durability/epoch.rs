//! The write verifier: a number that changes exactly when acknowledged data may have been lost.
//!
//! A live file system trusts what it wrote even before it was flushed. When the server, or its
//! host, forgets such writes and the client reconnects, the file system goes on with clean pages
//! for data that no longer exists. Whoever reconnects therefore compares the *epoch* first, as NFS
//! clients compare the write verifier (RFC 7530 §16.36).
//!
//! The epoch is kept with the storage, together with where acknowledged and unstable data may be.
//! A server that starts reads what its predecessor left: if the place was lost with it, the epoch
//! is a new one.

use std::fmt;
use std::str::FromStr;

use crate::device::Io;

/// Where acknowledged data may be that is not on stable storage, by how easily it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// There is none.
    Nowhere,
    /// In the kernel of the server's host, and gone when that dies.
    Kernel,
    /// In the server itself, and gone when that dies.
    Server,
}

/// What is kept about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The epoch.
    pub epoch: u64,
    /// Which boot of the host the record is of (`/proc/sys/kernel/random/boot_id`).
    pub boot: u128,
    /// Where unstable data may be.
    pub held: Held,
}

/// Keeps the record of one export.
pub trait Store: Send + Sync {
    /// Makes the record durable.
    fn keep(&self, record: Record) -> Io<'_, ()>;
    /// A number that was never an epoch before.
    fn fresh(&self) -> u64;
}

/// A record and its keeper.
pub struct Ledger {
    /// What holds when the server starts.
    pub record: Record,
    /// Who keeps what changes.
    pub store: Box<dyn Store>,
}

impl Record {
    /// What holds for a server that starts in `boot` on what another one `left`. A `fresh` epoch is
    /// used if the other one may have lost something.
    #[must_use]
    pub fn after(left: Option<Record>, boot: u128, fresh: u64) -> Record {
        let anew = Record { epoch: fresh, boot, held: Held::Nowhere };
        let Some(left) = left else { return anew };
        match left.held {
            Held::Nowhere => Record { boot, ..left },
            Held::Kernel if left.boot == boot => left,
            // What the other server had given to the kernel is there, and may still be lost.
            Held::Server if left.boot == boot => Record { held: Held::Kernel, ..anew },
            Held::Kernel | Held::Server => anew,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = match self.held {
            Held::Nowhere => "nowhere",
            Held::Kernel => "kernel",
            Held::Server => "server",
        };
        write!(f, "1 {:016x} {:032x} {held}", self.epoch, self.boot)
    }
}

/// The text is no record, or one of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl FromStr for Record {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Record, Unreadable> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["1", epoch, boot, held] = words[..] else { return Err(Unreadable) };
        Ok(Record {
            epoch: u64::from_str_radix(epoch, 16).map_err(|_| Unreadable)?,
            boot: u128::from_str_radix(boot, 16).map_err(|_| Unreadable)?,
            held: match held {
                "nowhere" => Held::Nowhere,
                "kernel" => Held::Kernel,
                "server" => Held::Server,
                _ => return Err(Unreadable),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_changes_when_what_was_held_is_lost_and_only_then() {
        let left = |held| Some(Record { epoch: 7, boot: 1, held });
        let after = |held, boot| Record::after(left(held), boot, 8);
        for (held, killed, power_lost) in [(Held::Nowhere, 7, 7), (Held::Kernel, 7, 8), (Held::Server, 8, 8)]
        {
            assert_eq!((after(held, 1).epoch, after(held, 2).epoch), (killed, power_lost), "{held:?}");
        }
        // Two deaths in a row: what the first left in the kernel is lost with the second.
        let killed = after(Held::Server, 1);
        assert_eq!(Record::after(Some(killed), 2, 9).epoch, 9);
        assert_eq!(Record::after(None, 1, 8).epoch, 8);
    }

    #[test]
    fn records_survive_being_written_and_read() {
        for held in [Held::Nowhere, Held::Kernel, Held::Server] {
            let record = Record { epoch: u64::MAX - 1, boot: u128::MAX, held };
            assert_eq!(record.to_string().parse(), Ok(record));
        }
        for bad in ["", "1", "2 0 0 nowhere", "1 0 0 somewhere", "1 x 0 kernel", "1 0 0 kernel more"] {
            assert_eq!(bad.parse::<Record>(), Err(Unreadable), "{bad:?}");
        }
    }
}
