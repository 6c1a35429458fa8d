//! Sectors that say where they are from: which file, which block, which operation.

use std::fmt;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
const MAGIC: u32 = 0x6e62_6457;

/// Where a sector's content is from. Files go by the number of the operation that created them, and so do versions of
/// a block by that of the operation that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The file.
    pub file: u32,
    /// Its block.
    pub block: u32,
    /// The sector of the block.
    pub sector: u32,
    /// The operation that wrote it.
    pub version: u32,
}

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// What an operation wrote, whole.
    Written(Origin),
    /// Zeroes.
    Zero,
    /// Neither.
    Garbage,
}

impl Origin {
    /// The sector's bytes.
    pub fn bytes(self) -> [u8; SECTOR] {
        let mut out = [0; SECTOR];
        let words = [MAGIC, self.file, self.block, self.sector, self.version];
        let mut state = words.iter().fold(1_u64, |state, word| {
            (state ^ u64::from(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        for (place, word) in out.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        // Eight bytes, again and again: enough to tell a torn sector, and easily compressed.
        state |= 1;
        for place in out[20..].chunks_mut(8) {
            place.copy_from_slice(&state.to_le_bytes()[..place.len()]);
        }
        out
    }
}

/// Reads a sector.
pub fn read(bytes: &[u8]) -> Holds {
    let word = |number: usize| {
        u32::from_le_bytes(bytes[4 * number..][..4].try_into().expect("a sector has five words"))
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return Holds::Zero;
    }
    let origin = Origin { file: word(1), block: word(2), sector: word(3), version: word(4) };
    if word(0) == MAGIC && bytes == origin.bytes() { Holds::Written(origin) } else { Holds::Garbage }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holds::Zero => f.write_str("zeroes"),
            Holds::Garbage => f.write_str("what no operation wrote"),
            Holds::Written(Origin { file, block, sector, version }) => {
                write!(f, "what operation {version} wrote to sector {sector} of block {block} of file {file}")
            }
        }
    }
}
