//! Judges an ext4 file system in memory: its journal is replayed, and every file that a workload has promised is read.
//! Nothing is mounted and nobody needs to be root.
//!
//! What the kernel would refuse is refused: wrong checksums of the superblock, of group descriptors, of the journal and
//! of every inode, directory and extent block on the way. It is our own reader because the one there is for Rust
//! (ext4-view 1.0) reads unwritten extents as data and gives up on journals that wrap.

mod fs;
mod journal;

use std::sync::Arc;

use fs::FileSystem;

use super::{Expectation, Oracle};
use crate::history::History;
use crate::image::Image;

/// The judge.
pub struct Ext4Oracle {
    expectation: Expectation,
}

impl Ext4Oracle {
    /// One for a history whose marks are a workload's.
    pub fn new(history: Arc<History>) -> Ext4Oracle {
        Ext4Oracle { expectation: Expectation::new(history) }
    }
}

impl Oracle for Ext4Oracle {
    fn judge(&mut self, time: usize, image: &Arc<Image>) -> anyhow::Result<Vec<String>> {
        let model = self.expectation.at(time)?;
        if model.is_empty() {
            return Ok(Vec::new());
        }
        Ok(match FileSystem::mount(image) {
            Ok(fs) => model.names().filter_map(|name| model.judge(name, &fs.look(name))).collect(),
            Err(why) => vec![format!("the file system cannot be mounted: {why}")],
        })
    }

    fn promises(&mut self, time: usize) -> anyhow::Result<u64> {
        Ok(self.expectation.at(time)?.version)
    }
}
