//! Which disk it is, of servers that cannot tell: what lies on it, while something does.
//!
//! The identifiers in superblocks change when a file system is made, so they count only while the device is in use, and only
//! after they were seen a few times in the same use: what was written last may be on its way to the server.

use super::{Keeper, PATIENCE};
use crate::usage::marks;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

/// Looks in a row that have seen the same.
const LOOKS: u32 = 3;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Disk {
    marks: RefCell<Vec<(PathBuf, u64)>>,
    seen: RefCell<Option<String>>,
    looks: Cell<u32>,
}

impl Keeper<'_> {
    /// Looks what lies on the disk, if nothing else tells it from others.
    pub(super) async fn look_at_disk(&self) {
        if self.told.borrow().epoch.is_some() || self.identity().is_some() {
            return;
        }
        let before = self.marks();
        if before.is_empty() {
            return;
        }
        let found = match self.opener.identity(PATIENCE).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("{}: what lies on it: {error}", self.index);
                return;
            }
        };
        let disk = &self.disk;
        let same = *disk.marks.borrow() == before && *disk.seen.borrow() == found && self.marks() == before;
        disk.looks.set(if same { disk.looks.get() + 1 } else { 1 });
        *disk.marks.borrow_mut() = before;
        *disk.seen.borrow_mut() = found;
        if let Some(identity) = self.identity() {
            tracing::info!("{}: from now on it is known by what it holds: {identity}", self.index);
        }
    }

    /// What the disk has to hold, if that is known.
    pub(super) fn identity(&self) -> Option<String> {
        let known = self.disk.looks.get() >= LOOKS && *self.disk.marks.borrow() == self.marks();
        self.disk.seen.borrow().clone().filter(|_| known)
    }

    fn marks(&self) -> Vec<(PathBuf, u64)> {
        marks(&self.host.sysfs.device(self.index), Path::new("/sys"))
    }
}
