//! What a file may hold after a crash.

use std::collections::BTreeSet;

use crate::workload::operation::BLOCK;
use crate::workload::sector::{self, Holds, Origin, SECTOR};

/// The sizes and contents that a file may have. Sizes and places are in blocks.
#[derive(Debug, Clone, Default)]
pub struct FileModel {
    /// By block: the operation that wrote it, or none for zeroes.
    now: Vec<Option<u32>>,
    /// By block: what else may be there, the content now included.
    may: Vec<BTreeSet<Option<u32>>>,
    smallest: u64,
    largest: u64,
    promised: u32,
}

/// What a file was found to hold.
pub struct Contents {
    /// Bytes.
    pub size: u64,
    /// All of them.
    pub data: Vec<u8>,
}

impl FileModel {
    /// How many blocks it has.
    pub fn size(&self) -> u64 {
        self.now.len() as u64
    }

    /// Blocks get the content of an operation, or zeroes.
    pub fn write(&mut self, first: u64, count: u64, by: Option<u32>) {
        let end = place(first + count);
        if end > self.now.len() {
            self.now.resize(end, None);
        }
        self.change(place(first)..end, by);
        self.resized();
    }

    /// Blocks inside its size become zeroes.
    pub fn punch(&mut self, first: u64, count: u64) {
        let end = place(first + count).min(self.now.len());
        if place(first) < end {
            self.change(place(first)..end, None);
        }
    }

    /// Its size changes; what is new is zero.
    pub fn truncate(&mut self, size: u64) {
        let (old, new) = (self.now.len(), place(size));
        self.now.resize(new, None);
        // What was cut off is zero if the size grows again.
        for may in self.may.iter_mut().take(old).skip(new) {
            may.insert(None);
        }
        self.resized();
    }

    /// All of it is promised.
    pub fn settle(&mut self, number: u32) {
        self.may = self.now.iter().map(|now| [*now].into()).collect();
        (self.smallest, self.largest) = (self.size(), self.size());
        self.promised = number;
    }

    fn change(&mut self, blocks: std::ops::Range<usize>, to: Option<u32>) {
        for block in blocks {
            self.now[block] = to;
            self.may_be(block, to);
        }
    }

    fn may_be(&mut self, block: usize, content: Option<u32>) {
        while self.may.len() <= block {
            // Beyond what was promised, a block that was not written yet is a hole.
            self.may.push([None].into());
        }
        self.may[block].insert(content);
    }

    fn resized(&mut self) {
        self.smallest = self.smallest.min(self.size());
        self.largest = self.largest.max(self.size());
    }

    /// What is wrong with its contents, if anything is.
    pub fn judge(&self, file: u32, contents: &Contents) -> Option<String> {
        let promised = if self.promised > 0 {
            format!("promised by operation {}", self.promised)
        } else {
            String::new()
        };
        let (smallest, largest) = (self.smallest * BLOCK, self.largest * BLOCK);
        if !(smallest..=largest).contains(&contents.size) {
            let bytes = contents.size;
            return Some(format!("has {bytes} bytes, not {smallest} to {largest} {promised}"));
        }
        for (number, bytes) in contents.data.chunks(SECTOR).enumerate() {
            let (block, place) = (number / 8, number % 8);
            let holds = sector::read(bytes);
            let content = match holds {
                Holds::Zero => Some(None),
                Holds::Written(Origin { file: from, block: at, sector, version })
                    if (from, at as usize, sector as usize) == (file, block, place) =>
                {
                    Some(Some(version))
                }
                _ => None,
            };
            // The end of a file whose last block is not whole is zero there.
            let may = self.may.get(block);
            let right =
                content.is_some_and(|content| may.map_or(content.is_none(), |may| may.contains(&content)));
            if !right {
                let due = self.due(block, &promised);
                return Some(format!("holds {holds} in sector {place} of block {block}; {due}"));
            }
        }
        None
    }

    fn due(&self, block: usize, promised: &str) -> String {
        let content = |content: &Option<u32>| match content {
            None => "zeroes".to_owned(),
            Some(version) => format!("what operation {version} wrote"),
        };
        let may: Vec<_> = self.may.get(block).into_iter().flatten().map(content).collect();
        let may = if may.is_empty() { "nothing".to_owned() } else { may.join(" or ") };
        format!("{may} may be there {promised}").trim_end().to_owned()
    }
}

fn place(blocks: u64) -> usize {
    usize::try_from(blocks).expect("files are small")
}
