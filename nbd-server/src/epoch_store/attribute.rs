//! The record as an extended attribute of the file that it speaks of, with which it moves.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::identity::{Identity, change_time};
use crate::device::sync_failure;
use crate::durability::epoch::Record;
use crate::engine::inode_mark;

/// The extended attribute.
const NAME: &str = "user.nbd-server.epoch";
/// Longest record that is read, in bytes.
const RECORD_MAX: usize = 2048;
/// How long storing the last record of a server may take, in nanoseconds.
const WINDOW: u64 = 50_000_000;
/// The longest time between two readings of the clock that stamps files, in nanoseconds (`CONFIG_HZ=100`).
const TICK: u64 = 10_000_000;

/// The attribute of a file, through a description that nothing else uses.
pub(super) struct Attribute {
    file: Arc<File>,
}

impl Attribute {
    /// The attribute and what it holds, unless the file system has no such attributes.
    pub(super) fn open(file: &Arc<File>) -> io::Result<Option<(Attribute, Option<String>)>> {
        let mut text = [0; RECORD_MAX];
        let text = match fgetxattr(&**file, NAME, &mut text) {
            Ok(len) => Some(String::from_utf8_lossy(&text[..len]).into_owned()),
            Err(Errno::NODATA) => None,
            // Too long to be one of ours.
            Err(Errno::RANGE) => Some(String::new()),
            // Some file systems have none.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some((Attribute::at(file), text)))
    }

    /// The attribute, whatever it holds.
    pub(super) fn at(file: &Arc<File>) -> Attribute {
        Attribute { file: file.clone() }
    }

    /// Makes the record durable.
    pub(super) fn write(&self, record: &Record, identity: &Identity) -> io::Result<()> {
        let words = identity.words();
        if !record.clean {
            return self.set(&format!("{record} {words}"));
        }
        // Storing changes the change time, so the record foretells it: by the clock that the kernel takes
        // it from, and within a window that is over before the file is given up.
        let from = coarse_now();
        let until = from + WINDOW;
        self.set(&format!("{record} {words} changed={from}-{until}"))?;
        if !(from..=until).contains(&change_time(&self.file)?) {
            // A file system with another clock, or a coarse one. Nobody will be able to tell whether the
            // file is changed, so the record does not say that it can be told.
            return self.set(&format!("{} {words}", Record { clean: false, ..record.clone() }));
        }
        // Once, and not until the clock says so: it may be set back.
        thread::sleep(Duration::from_nanos(WINDOW + TICK));
        Ok(())
    }

    fn set(&self, text: &str) -> io::Result<()> {
        fsetxattr(&*self.file, NAME, text.as_bytes(), XattrFlags::empty())?;
        // It may tell of data of the file that could not be written back.
        self.file.sync_all().inspect_err(|_| inode_mark::clear(&self.file)).map_err(sync_failure)
    }

    /// Makes sure that there is no record.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fremovexattr(&*self.file, NAME) {
            Ok(()) => self.file.sync_all().or_else(|_| self.file.sync_all()),
            Err(Errno::NODATA) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The time of day as the kernel stamps files with it, in nanoseconds.
fn coarse_now() -> u64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
