//! Logs of the kernel's dm-log-writes (drivers/md/dm-log-writes.c, Documentation/admin-guide/device-mapper/log-writes):
//! recordings are written as such logs for the tools that read them, and logs that the kernel made are read.
//!
//! A log has the data of writes in the order in which they became durable: those that a FLUSH covers stand before it,
//! one with FUA where it was answered. What was never made durable follows at the end, after the kernel's own habit.
//! Readers look at the first 32 bytes of an entry; behind them, at byte 40, stands what the format has no place for:
//! `NBDX`, a version, the command, its flags, its connection, its error, when it was received and answered, by sequence
//! number and by time. From that a recording is had back as it was.

mod export;
mod import;

pub use export::export;
pub use import::import;

/// The log begins with it.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bytes of a sector: the unit of places and lengths, and the room of an entry's head.
const SECTOR: usize = 512;
/// Flags of an entry.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Where a mark's text stands.
const MARK_AT: usize = 32;
/// Where our own fields stand.
const EXTENSION_AT: usize = 40;
const EXTENSION: &[u8; 4] = b"NBDX";
const EXTENSION_LEN: usize = 64;
/// What an extension says a mark of ours stands for.
const OPENED: u16 = 0xfffe;
const CLOSED: u16 = 0xffff;
/// The mark with which the kernel ends its logs.
const END: &str = "dm-log-writes-end";

/// Our fields of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Extension {
    connection: u16,
    command: u16,
    flags: u16,
    error: u32,
    /// Sequence numbers; 0 for never.
    received: u64,
    answered: u64,
    received_ns: u64,
    answered_ns: u64,
    cookie: u64,
}

impl Extension {
    fn put(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(EXTENSION);
        out[4..6].copy_from_slice(&1_u16.to_le_bytes());
        for (at, number) in [(6, self.connection), (8, self.command), (10, self.flags)] {
            out[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        out[12..16].copy_from_slice(&self.error.to_le_bytes());
        let numbers = [self.received, self.answered, self.received_ns, self.answered_ns, self.cookie];
        for (place, number) in out[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Option<Extension> {
        let (u16_at, u64_at) =
            (|at| u16::from_le_bytes(field(bytes, at)), |at| u64::from_le_bytes(field(bytes, at)));
        (bytes.starts_with(EXTENSION) && u16_at(4) == 1).then(|| Extension {
            connection: u16_at(6),
            command: u16_at(8),
            flags: u16_at(10),
            error: u32::from_le_bytes(field(bytes, 12)),
            received: u64_at(16),
            answered: u64_at(24),
            received_ns: u64_at(32),
            answered_ns: u64_at(40),
            cookie: u64_at(48),
        })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a sector has room for all fields")
}
