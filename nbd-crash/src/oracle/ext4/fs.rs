//! Reads ext4 as Documentation/filesystems/ext4 lays it out, after the replay of its journal.

use super::journal::{self, Layout, Replayed};
use crate::image::Image;
use crate::workload::model::{Contents, Found};

/// Where the superblock is, and how long.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
const MAGIC: u16 = 0xef53;
/// Incompatible features: those that change nothing for a reader, and those that do.
const FILE_TYPES: u32 = 0x2;
const NEEDS_RECOVERY: u32 = 0x4;
const EXTENTS: u32 = 0x40;
const HAS_64BIT: u32 = 0x80;
const FLEXIBLE_GROUPS: u32 = 0x200;
const CHECKSUM_SEED: u32 = 0x2000;
const KNOWN: u32 = FILE_TYPES | NEEDS_RECOVERY | EXTENTS | HAS_64BIT | FLEXIBLE_GROUPS | CHECKSUM_SEED;
/// A compatible feature, and one for writers.
const HAS_JOURNAL: u32 = 0x4;
const METADATA_CHECKSUM: u32 = 0x400;
const ROOT: u32 = 2;
const JOURNAL: u32 = 8;
const EXTENTS_MAGIC: u16 = 0xf30a;
/// From this length on an extent is unwritten.
const WRITTEN_MAX: u16 = 0x8000;
/// What the checksum at the end of a directory's block looks like to those who do not know it.
const TAIL_LEN: usize = 12;
const TAIL_TYPE: u8 = 0xde;
/// Blocks of the longest journal that mke2fs makes.
const JOURNAL_MAX: usize = 10_240_000;
/// Groups of the largest file system that is judged: 8 TiB in blocks of 4 KiB.
const GROUPS_MAX: u32 = 1 << 16;
/// A file of a workload has less.
const FILE_MAX: u64 = 64 << 20;

/// A file system that could be mounted.
pub(super) struct FileSystem<'i> {
    image: &'i Image,
    replayed: Replayed,
    block_size: u64,
    inode_size: usize,
    inodes_per_group: u32,
    /// Where each group's inodes are.
    tables: Vec<u64>,
    /// Of all checksums; none where there are none.
    seed: Option<u32>,
}

struct Inode {
    bytes: Vec<u8>,
    seed: Option<u32>,
}

/// A run of a file's blocks.
struct Extent {
    first: u64,
    count: u64,
    /// Where they are; unwritten ones are nowhere.
    at: Option<u64>,
}

impl<'i> FileSystem<'i> {
    /// Replays the journal in memory and checks what the kernel checks.
    ///
    /// # Errors
    /// In words, where the kernel would not mount it.
    pub(super) fn mount(image: &'i Image) -> Result<FileSystem<'i>, String> {
        let mut fs = FileSystem::over(image)?;
        let superblock = fs.superblock()?;
        if u32_at(&superblock, 96) & NEEDS_RECOVERY != 0 {
            if u32_at(&superblock, 92) & HAS_JOURNAL == 0 {
                return Err("it needs recovery and has no journal".to_owned());
            }
            fs.read_groups(&superblock)?;
            let layout = Layout { block_size: fs.block_size, journal: fs.journal_blocks()? };
            fs.replayed = journal::replay(image, &layout)?;
        }
        let superblock = fs.superblock()?;
        fs.read_groups(&superblock)?;
        fs.inode(ROOT)?;
        Ok(fs)
    }

    fn over(image: &'i Image) -> Result<FileSystem<'i>, String> {
        let mut superblock = vec![0; SUPERBLOCK_LEN];
        image.read(SUPERBLOCK, &mut superblock).map_err(|error| error.to_string())?;
        if u16_at(&superblock, 56) != MAGIC {
            return Err("there is no superblock".to_owned());
        }
        let unknown = u32_at(&superblock, 96) & !KNOWN;
        if unknown != 0 {
            return Err(format!("it has features {unknown:#x}, which this oracle does not know"));
        }
        let block_size = match u32_at(&superblock, 24) {
            shift @ 0..=6 => 1024 << shift,
            _ => return Err("its block size makes no sense".to_owned()),
        };
        let seed =
            match (u32_at(&superblock, 100) & METADATA_CHECKSUM, u32_at(&superblock, 96) & CHECKSUM_SEED) {
                (0, _) => None,
                (_, 0) => Some(journal::checksum(!0, &superblock[104..120])),
                _ => Some(u32_at(&superblock, 624)),
            };
        let inode_size = usize::from(u16_at(&superblock, 88));
        let inodes_per_group = u32_at(&superblock, 40);
        if !(128..=1024).contains(&inode_size) || inodes_per_group == 0 {
            return Err("its superblock makes no sense".to_owned());
        }
        let (replayed, tables) = (Replayed::new(), Vec::new());
        Ok(FileSystem { image, replayed, block_size, inode_size, inodes_per_group, tables, seed })
    }

    fn superblock(&self) -> Result<Vec<u8>, String> {
        let superblock = self.read(SUPERBLOCK, SUPERBLOCK_LEN)?;
        let sum = journal::checksum(!0, &superblock[..SUPERBLOCK_LEN - 4]);
        if self.seed.is_some() && sum != u32_at(&superblock, SUPERBLOCK_LEN - 4) {
            return Err("the superblock has a wrong checksum".to_owned());
        }
        Ok(superblock)
    }

    fn read_groups(&mut self, superblock: &[u8]) -> Result<(), String> {
        let is_wide = u32_at(superblock, 96) & HAS_64BIT != 0;
        let size = if is_wide { usize::from(u16_at(superblock, 254)) } else { 32 };
        let blocks = u64::from(u32_at(superblock, 4));
        let per_group = u64::from(u32_at(superblock, 32));
        if per_group == 0 || !(32..=1024).contains(&size) {
            return Err("its superblock makes no sense".to_owned());
        }
        let groups = blocks.saturating_sub(u64::from(u32_at(superblock, 20))).div_ceil(per_group);
        let at = (SUPERBLOCK / self.block_size + 1) * self.block_size;
        self.tables.clear();
        let groups = u32::try_from(groups).ok().filter(|groups| *groups <= GROUPS_MAX);
        for number in 0..groups.ok_or("it has too many groups")? {
            let group = self.read(at + u64::from(number) * size as u64, size)?;
            if let Some(seed) = self.seed {
                let sum = journal::checksum(journal::checksum(seed, &number.to_le_bytes()), &group[..30]);
                let sum = journal::checksum(journal::checksum(sum, &[0; 2]), &group[32..]);
                if sum & 0xffff != u32::from(u16_at(&group, 30)) {
                    return Err(format!("the descriptor of group {number} has a wrong checksum"));
                }
            }
            let high = if is_wide && size >= 64 { u64::from(u32_at(&group, 40)) << 32 } else { 0 };
            let table = high | u64::from(u32_at(&group, 8));
            if table == 0 || table >= blocks {
                return Err(format!("the inodes of group {number} are outside the device"));
            }
            self.tables.push(table);
        }
        Ok(())
    }

    fn inode(&self, number: u32) -> Result<Inode, String> {
        let index = number.checked_sub(1).ok_or("there is no inode 0")?;
        let table = self
            .tables
            .get((index / self.inodes_per_group) as usize)
            .ok_or("an inode is outside all groups")?;
        let place = u64::from(index % self.inodes_per_group) * self.inode_size as u64;
        let bytes = self.read(self.place(*table)? + place, self.inode_size)?;
        let seed = self
            .seed
            .map(|seed| journal::checksum(journal::checksum(seed, &number.to_le_bytes()), &bytes[100..104]));
        if let Some(seed) = seed {
            let is_wide = bytes.len() > 128 && u16_at(&bytes, 128) >= 4;
            let mut plain = bytes.clone();
            plain[124..126].fill(0);
            if is_wide {
                plain[130..132].fill(0);
            }
            let sum = journal::checksum(seed, &plain);
            let high = if is_wide { u32::from(u16_at(&bytes, 130)) << 16 } else { sum & 0xffff_0000 };
            if sum != high | u32::from(u16_at(&bytes, 124)) {
                return Err(format!("inode {number} has a wrong checksum"));
            }
        }
        Ok(Inode { bytes, seed })
    }

    /// What is at a path.
    pub(super) fn look(&self, path: &str) -> Found {
        let find = || -> Result<Found, String> {
            let mut inode = self.inode(ROOT)?;
            for part in path.split('/') {
                if !inode.is_directory() {
                    return Ok(Found::Absent);
                }
                let Some(number) = self.entry(&inode, part.as_bytes())? else { return Ok(Found::Absent) };
                inode = self.inode(number)?;
                if u16_at(&inode.bytes, 26) == 0 {
                    return Err(format!("its inode {number} was deleted"));
                }
            }
            if inode.is_directory() {
                return Ok(Found::Directory);
            }
            Ok(Found::File(Contents { size: inode.size(), data: self.contents(&inode)? }))
        };
        find().unwrap_or_else(Found::Unreadable)
    }

    fn contents(&self, inode: &Inode) -> Result<Vec<u8>, String> {
        if inode.size() > FILE_MAX {
            return Err(format!("it has {} bytes", inode.size()));
        }
        let len = usize::try_from(inode.size()).map_err(|_| "it is too long")?;
        let mut data = vec![0; len];
        for Extent { first, count, at } in self.extents(inode)? {
            let start = len.min(usize::try_from(first.saturating_mul(self.block_size)).unwrap_or(len));
            let end =
                len.min(usize::try_from((first + count).saturating_mul(self.block_size)).unwrap_or(len));
            if let Some(at) = at {
                self.fill(self.place(at)?, &mut data[start..end])?;
            }
        }
        Ok(data)
    }

    /// The inode of a name in a directory. Blocks of an index look like empty ones.
    fn entry(&self, directory: &Inode, name: &[u8]) -> Result<Option<u32>, String> {
        let data = self.contents(directory)?;
        for block in data.chunks_exact(usize::try_from(self.block_size).expect("it was checked")) {
            let tail = &block[block.len() - TAIL_LEN..];
            let has_tail = u32_at(tail, 0) == 0 && u16_at(tail, 4) == 12 && tail[7] == TAIL_TYPE;
            if let (Some(seed), true) = (directory.seed, has_tail)
                && journal::checksum(seed, &block[..block.len() - TAIL_LEN]) != u32_at(tail, 8)
            {
                return Err("a block of its directory has a wrong checksum".to_owned());
            }
            let mut at = 0;
            while at + 8 <= block.len() {
                let (inode, len) = (u32_at(block, at), usize::from(u16_at(block, at + 4)));
                let name_len = usize::from(block[at + 6]);
                if len < 8 + name_len || !len.is_multiple_of(4) || at + len > block.len() {
                    return Err("a block of its directory makes no sense".to_owned());
                }
                if inode != 0 && block[at + 8..at + 8 + name_len] == *name {
                    return Ok(Some(inode));
                }
                at += len;
            }
        }
        Ok(None)
    }

    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, String> {
        let mut extents = Vec::new();
        self.node(inode, &inode.bytes[40..100], 0, &mut extents)?;
        Ok(extents)
    }

    fn node(&self, inode: &Inode, node: &[u8], depth: u16, out: &mut Vec<Extent>) -> Result<(), String> {
        let (entries, most, below) = (u16_at(node, 2), usize::from(u16_at(node, 4)), u16_at(node, 6));
        if u16_at(node, 0) != EXTENTS_MAGIC
            || depth > 5
            || 12 + 12 * most > node.len()
            || usize::from(entries) > most
        {
            return Err("its extents make no sense".to_owned());
        }
        if let (Some(seed), true) = (inode.seed, depth > 0) {
            let (body, tail) = node.split_at(12 + 12 * most);
            if tail.len() < 4 || journal::checksum(seed, body) != u32_at(tail, 0) {
                return Err("its extents have a wrong checksum".to_owned());
            }
        }
        for entry in node[12..].chunks_exact(12).take(entries.into()) {
            let first = u64::from(u32_at(entry, 0));
            if below > 0 {
                let block = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                let len = usize::try_from(self.block_size).expect("it was checked");
                self.node(inode, &self.read(self.place(block)?, len)?, depth + 1, out)?;
                continue;
            }
            let count = u16_at(entry, 4);
            let at = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
            let is_written = count <= WRITTEN_MAX;
            let count = if is_written { count } else { count - WRITTEN_MAX };
            out.push(Extent { first, count: count.into(), at: is_written.then_some(at) });
        }
        Ok(())
    }

    fn journal_blocks(&self) -> Result<Vec<u64>, String> {
        let inode = self.inode(JOURNAL)?;
        let mut blocks = Vec::new();
        for Extent { count, at, .. } in self.extents(&inode)? {
            let at = at.ok_or("the journal has unwritten blocks")?;
            blocks.extend(at..at + count);
            if blocks.len() > JOURNAL_MAX {
                return Err("the journal is too long".to_owned());
            }
        }
        blocks.truncate(
            usize::try_from(inode.size() / self.block_size).map_err(|_| "the journal is too long")?,
        );
        Ok(blocks)
    }

    /// The first byte of a block.
    fn place(&self, block: u64) -> Result<u64, String> {
        // A device cannot be longer than half of this, so that what is added does not wrap.
        block
            .checked_mul(self.block_size)
            .filter(|at| *at < 1 << 63)
            .ok_or("a block is outside all devices".to_owned())
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        self.fill(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The journal's content where it has one, else the device's.
    fn fill(&self, mut at: u64, mut buf: &mut [u8]) -> Result<(), String> {
        let size = usize::try_from(self.block_size).expect("it was checked");
        while !buf.is_empty() {
            let skip = usize::try_from(at % self.block_size).expect("less than a block");
            let (head, rest) = buf.split_at_mut(buf.len().min(size - skip));
            match self.replayed.get(&(at / self.block_size)) {
                Some(block) => head.copy_from_slice(&block[skip..][..head.len()]),
                None => self.image.read(at, head).map_err(|error| error.to_string())?,
            }
            at += head.len() as u64;
            buf = rest;
        }
        Ok(())
    }
}

impl Inode {
    fn is_directory(&self) -> bool {
        u16_at(&self.bytes, 0) & 0xf000 == 0x4000
    }

    fn size(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 108)) << 32 | u64::from(u32_at(&self.bytes, 4))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
