//! Device mapper: a device whose ranges can be made to fail while it is in use.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::tool;

/// The unit of its tables.
const SECTOR: u64 = 512;

/// How a range fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `error`: nothing can be read or written.
    Error,
    /// `flakey` with `error_writes`: what is there can be read, and every flush of the device fails.
    Flakey,
}

/// A mapped device over another one, removed when it is dropped.
pub(super) struct Mapped {
    name: String,
    over: PathBuf,
    len: u64,
}

/// Whether this kernel has device mapper.
pub(super) fn is_there() -> bool {
    std::fs::read_to_string("/proc/devices").is_ok_and(|devices| devices.contains("device-mapper"))
}

impl Mapped {
    /// One that passes everything on.
    pub(super) fn over(device: &Path, len: u64) -> Result<Mapped> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-tests-{}-{number}", std::process::id());
        let mapped = Mapped { name, over: device.to_owned(), len };
        dmsetup(&["create", "--noudevsync", &mapped.name, "--table", &mapped.table(&[], Target::Error)])?;
        // Where no udev makes the node.
        dmsetup(&["mknodes", &mapped.name])?;
        Ok(mapped)
    }

    /// The device node.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// From now on these ranges of bytes fail; they are in order.
    pub(super) fn fail(&self, ranges: &[Range<u64>], target: Target) -> Result<()> {
        dmsetup(&["suspend", "--noudevsync", &self.name])?;
        dmsetup(&["reload", &self.name, "--table", &self.table(ranges, target)])?;
        dmsetup(&["resume", "--noudevsync", &self.name])
    }

    fn table(&self, failing: &[Range<u64>], target: Target) -> String {
        let over = self.over.display();
        let (mut lines, mut done) = (String::new(), 0);
        let mut put = |end: u64, fails: Option<Target>| {
            let (start, len) = (done / SECTOR, (end - done) / SECTOR);
            let line = match fails {
                None => format!("{start} {len} linear {over} {start}\n"),
                Some(Target::Error) => format!("{start} {len} error\n"),
                // Up for no second, down for an hour.
                Some(Target::Flakey) => {
                    format!("{start} {len} flakey {over} {start} 0 3600 1 error_writes\n")
                }
            };
            lines.extend((len > 0).then_some(line));
            done = end;
        };
        for range in failing {
            put(range.start, None);
            put(range.end, Some(target));
        }
        put(self.len, None);
        lines
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _best_effort = dmsetup(&["remove", "--noudevsync", "--retry", &self.name]);
    }
}

fn dmsetup(args: &[&str]) -> Result<()> {
    let dmsetup = tool::find("dmsetup", "dmsetup").context("there is no dmsetup")?;
    let done = tool::run(&dmsetup, args);
    ensure!(done.status.success(), "dmsetup {args:?}: {}", done.stderr.trim());
    Ok(())
}
