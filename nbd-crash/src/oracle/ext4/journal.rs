//! Replays the journal of an ext4 file system in memory, as the kernel does when it mounts one after a crash (JBD2,
//! fs/jbd2/recovery.c): a scan for the last whole transaction, a look for revoked blocks, and the replay.

use std::collections::HashMap;

use crate::image::Image;

const MAGIC: u32 = 0xc03b_3998;
/// Kinds of journal blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
/// Incompatible features of a journal.
const HAS_REVOKE: u32 = 1;
const HAS_64BIT: u32 = 2;
const HAS_CHECKSUM_V3: u32 = 16;
/// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const DELETED: u32 = 4;
const LAST: u32 = 8;
/// Bytes of a journal block's header.
const HEAD: usize = 12;

/// Where an ext4 file system has what.
pub(super) struct Layout {
    /// Bytes of a block.
    pub(super) block_size: u64,
    /// The journal's blocks, in order.
    pub(super) journal: Vec<u64>,
}

/// Blocks of the file system, by number, as the journal has them.
pub(super) type Replayed = HashMap<u64, Vec<u8>>;

struct Journal<'a> {
    image: &'a Image,
    layout: &'a Layout,
    first: u32,
    length: u32,
    sequence: u32,
    features: u32,
    /// Seed of the checksums, from the journal's UUID; none where it has none.
    seed: Option<u32>,
}

/// A descriptor block's entry.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

/// What the journal says the file system's blocks are.
///
/// # Errors
/// In words, where the kernel would not mount it.
pub(super) fn replay(image: &Image, layout: &Layout) -> Result<Replayed, String> {
    let first = *layout.journal.first().ok_or("the journal has no blocks")?;
    let block = block(image, layout, first)?;
    let word = |at| u32_at(&block, at);
    if word(0) != MAGIC || !matches!(word(4), 3 | 4) {
        return Err("the journal has no superblock".to_owned());
    }
    let features = word(40);
    if features & !(HAS_REVOKE | HAS_64BIT | HAS_CHECKSUM_V3) != 0 {
        return Err(format!("the journal has features {features:#x}, which this oracle does not know"));
    }
    let seed = (features & HAS_CHECKSUM_V3 != 0).then(|| checksum(!0, &block[48..64]));
    if seed.is_some() {
        let mut copy = block[..1024].to_vec();
        copy[0xfc..0x100].fill(0);
        if checksum(!0, &copy) != word(0xfc) {
            return Err("the journal's superblock has a wrong checksum".to_owned());
        }
    }
    let (length, first, sequence, start) = (word(16), word(20), word(24), word(28));
    if u64::from(word(12)) != layout.block_size || length as usize > layout.journal.len() || first >= length {
        return Err("the journal's superblock makes no sense".to_owned());
    }
    if start == 0 {
        return Ok(Replayed::new());
    }
    if start < first || start >= length {
        return Err("the journal begins outside itself".to_owned());
    }
    let journal = Journal { image, layout, first, length, sequence, features, seed };
    let end = journal.scan(start)?;
    let revoked = journal.revoked(start, end)?;
    journal.replay(start, end, &revoked)
}

impl Journal<'_> {
    fn block(&self, number: u32) -> Result<Vec<u8>, String> {
        block(self.image, self.layout, self.layout.journal[number as usize])
    }

    fn after(&self, number: u32, count: u32) -> u32 {
        self.first + (number - self.first + count) % (self.length - self.first)
    }

    /// The sequence number of the first transaction that is not whole.
    fn scan(&self, start: u32) -> Result<u32, String> {
        let (mut at, mut sequence) = (start, self.sequence);
        for _ in 0..self.length {
            let block = self.block(at)?;
            match self.kind(&block, sequence) {
                Some(DESCRIPTOR) if self.tail_is_right(&block) => {
                    at = self.after(at, 1 + count(self.tags(&block).len()));
                }
                Some(REVOKE) => at = self.after(at, 1),
                Some(COMMIT) if self.commit_is_right(&block) => {
                    at = self.after(at, 1);
                    sequence = sequence.wrapping_add(1);
                }
                _ => return Ok(sequence),
            }
        }
        Err("the journal has no end".to_owned())
    }

    /// For each block that was revoked, the last transaction that did.
    fn revoked(&self, start: u32, end: u32) -> Result<HashMap<u64, u32>, String> {
        let mut revoked = HashMap::new();
        self.each(start, end, |sequence, kind, _, block| {
            if kind != REVOKE {
                return Ok(());
            }
            if !self.tail_is_right(block) {
                return Err("a revoke block of the journal has a wrong checksum".to_owned());
            }
            let width = if self.features & HAS_64BIT != 0 { 8 } else { 4 };
            let used = (u32_at(block, HEAD) as usize).min(block.len());
            for record in block.get(HEAD + 4..used).unwrap_or_default().chunks_exact(width) {
                let number = record.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                revoked.insert(number, sequence);
            }
            Ok(())
        })?;
        Ok(revoked)
    }

    fn replay(&self, start: u32, end: u32, revoked: &HashMap<u64, u32>) -> Result<Replayed, String> {
        let mut replayed = Replayed::new();
        self.each(start, end, |sequence, kind, at, block| {
            if kind != DESCRIPTOR {
                return Ok(());
            }
            for (number, tag) in (1..).zip(self.tags(block)) {
                let is_newer = |last: &u32| 0 > sequence.wrapping_sub(*last).wrapping_sub(1).cast_signed();
                if revoked.get(&tag.block).is_some_and(is_newer) || tag.flags & DELETED != 0 {
                    continue;
                }
                let mut data = self.block(self.after(at, number))?;
                if let Some(seed) = self.seed {
                    let sum = checksum(checksum(seed, &sequence.to_be_bytes()), &data);
                    if sum != tag.checksum {
                        return Err(format!(
                            "block {} of transaction {sequence} in the journal has a wrong checksum",
                            tag.block
                        ));
                    }
                }
                if tag.flags & ESCAPED != 0 {
                    data[..4].copy_from_slice(&MAGIC.to_be_bytes());
                }
                replayed.insert(tag.block, data);
            }
            Ok(())
        })?;
        Ok(replayed)
    }

    /// Calls for every block of the journal's own, of whole transactions: with its transaction, kind, place and content.
    fn each(
        &self,
        start: u32,
        end: u32,
        mut each: impl FnMut(u32, u32, u32, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mut at, mut sequence) = (start, self.sequence);
        while sequence != end {
            let block = self.block(at)?;
            let kind = self.kind(&block, sequence).ok_or("the journal changes while it is read")?;
            each(sequence, kind, at, &block)?;
            let skip = if kind == DESCRIPTOR { count(self.tags(&block).len()) } else { 0 };
            at = self.after(at, 1 + skip);
            if kind == COMMIT {
                sequence = sequence.wrapping_add(1);
            }
        }
        Ok(())
    }

    fn kind(&self, block: &[u8], sequence: u32) -> Option<u32> {
        (u32_at(block, 0) == MAGIC && u32_at(block, 8) == sequence).then(|| u32_at(block, 4))
    }

    fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let wide = self.features & HAS_64BIT != 0;
        let (size, tail) = match (self.seed.is_some(), wide) {
            (true, _) => (16, 4),
            (false, true) => (12, 0),
            (false, false) => (8, 0),
        };
        let mut tags = Vec::new();
        let mut at = HEAD;
        while at + size <= block.len() - tail {
            let low = u64::from(u32_at(block, at));
            let (flags, checksum) = match self.seed {
                Some(_) => (u32_at(block, at + 4), u32_at(block, at + 12)),
                None => (u32_at(block, at + 4) & 0xffff, 0),
            };
            let high = if wide { u64::from(u32_at(block, at + 8)) } else { 0 };
            tags.push(Tag { block: high << 32 | low, flags, checksum });
            at += size + if flags & SAME_UUID != 0 { 0 } else { 16 };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    /// Whether the checksum in the last four bytes is right.
    fn tail_is_right(&self, block: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        let (body, tail) = block.split_at(block.len() - 4);
        checksum(checksum(seed, body), &[0; 4]) == u32_at(tail, 0)
    }

    fn commit_is_right(&self, block: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        let sum = checksum(checksum(checksum(seed, &block[..16]), &[0; 4]), &block[20..]);
        sum == u32_at(block, 16)
    }
}

/// CRC-32C as the kernel has it: neither begun nor ended with an inversion.
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn block(image: &Image, layout: &Layout, number: u64) -> Result<Vec<u8>, String> {
    let mut block = vec![0; usize::try_from(layout.block_size).map_err(|_| "a block is too large")?];
    let at = number.checked_mul(layout.block_size).ok_or("a block is outside all devices")?;
    image.read(at, &mut block).map_err(|error| error.to_string())?;
    Ok(block)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a block has few tags")
}
