//! A disk that fails in the kernel itself, with nothing injected: a loop device over a file on a tmpfs that is full.
//!
//! The blocks of the first half of what is served are there and can be written. Those of the second half are holes in
//! the backing file, and a page for them is not to be had: the loop device answers a write there with an error, and the
//! kernel's write-back of the page cache fails as it does on a worn disk or a full thin pool. Where there is device
//! mapper, its targets can refuse instead.
//!
//! | module | what it is for |
//! |---|---|
//! | `mapped` | the targets of device mapper that fail |
//! | [`plan`] | the rounds of requests that are made on such a disk |
//! | [`trial`] | one disk, one server, some rounds; then the power is cut and every promise is looked up |
//! | [`report`] | trials of every mode on every kind of storage, as a table |

mod mapped;
pub mod plan;
pub mod report;
mod served;
pub mod trial;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use self::mapped::Mapped;
pub use self::mapped::Target;
use crate::mount::{LoopDevice, Mount, make_ext4, sync_file_system};

/// Bytes of each half: the good one and the one that cannot be written.
pub const HALF: u64 = 8 << 20;
/// Bytes of what is served.
pub const SIZE: u64 = 2 * HALF;
/// The unit in which blocks are there or not.
const BLOCK: usize = 4096;
/// What ext4 needs beside the image.
const EXT4_OVERHEAD: u64 = 12 << 20;
/// What a tmpfs may hold beside the backing file, before it is filled.
const SLACK: u64 = 1 << 20;
/// What each block of the half that will fail begins with, so that it is found in the backing file.
const MARK: &[u8] = b"a block of the half that cannot be written\n";

/// What kind of storage fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A file on ext4.
    File,
    /// The block device itself.
    Device,
}

/// Why it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The tmpfs beneath the loop device is full.
    Full,
    /// Device mapper refuses, where there is device mapper.
    Mapped(Target),
}

impl Cause {
    /// Whether this kernel can make a disk fail in this way.
    #[must_use]
    pub fn is_available(self) -> bool {
        self == Cause::Full || mapped::is_there()
    }

    /// Whether the disk refuses to flush its cache, so that it is right to promise nothing.
    #[must_use]
    pub fn fails_every_flush(self) -> bool {
        self == Cause::Mapped(Target::Flakey)
    }
}

/// A failing disk. Its parts are taken down in this order.
pub struct FailingDisk {
    file_system: Option<Mount>,
    mapped: Option<Mapped>,
    device: LoopDevice,
    tmpfs: Mount,
    dir: TempDir,
    served: PathBuf,
}

impl FailingDisk {
    /// Makes one on a full tmpfs, in a fraction of a second.
    pub fn make(medium: Medium) -> Result<FailingDisk> {
        FailingDisk::failing_by(medium, Cause::Full)
    }

    /// Makes one.
    pub fn failing_by(medium: Medium, cause: Cause) -> Result<FailingDisk> {
        let dir = tempfile::tempdir()?;
        let len = match medium {
            Medium::File => SIZE + EXT4_OVERHEAD,
            Medium::Device => SIZE,
        };
        let tmpfs = Mount::tmpfs(&dir.path().join("tmpfs"), len + SLACK)?;
        let backing = backing(&tmpfs);
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&backing)?;
        file.set_len(len)?;
        match medium {
            Medium::File => make_ext4(&backing)?,
            Medium::Device => write_image(&file)?,
        }
        // A file system's maker leaves holes where it writes zeroes.
        fallocate(&file, FallocateFlags::empty(), 0, len.cast_signed())?;
        let device = LoopDevice::over(&backing)?;
        let mapped = match cause {
            Cause::Full => None,
            Cause::Mapped(_) => Some(Mapped::over(device.path(), len)?),
        };
        let node = mapped.as_ref().map_or(device.path().to_owned(), Mapped::path);
        let (file_system, served) = match medium {
            Medium::File => {
                let mounted = Mount::ext4(&node, &dir.path().join("ext4"))?;
                let served = mounted.path().join("disk.img");
                write_image(&File::create_new(&served)?)?;
                sync_file_system(mounted.path())?;
                (Some(mounted), served)
            }
            Medium::Device => (None, node),
        };
        let disk = FailingDisk { file_system, mapped, device, tmpfs, dir, served };
        let marked = marked_ranges(&file)?;
        match (cause, &disk.mapped) {
            (Cause::Mapped(target), Some(mapped)) => mapped.fail(&marked, target)?,
            _ => {
                take_away(&file, &marked)?;
                disk.fill()?;
            }
        }
        Ok(disk)
    }

    /// What a server is to serve.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.served
    }

    /// Unmounts the file system, if there is one, and mounts it again.
    pub fn remount(&mut self) -> Result<()> {
        let Some(mounted) = self.file_system.take() else { return Ok(()) };
        let at = mounted.path().to_owned();
        mounted.unmount()?;
        let node = self.mapped.as_ref().map_or(self.device.path().to_owned(), Mapped::path);
        self.file_system = Some(Mount::ext4(&node, &at)?);
        Ok(())
    }

    /// A directory for more files, on a disk that works.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the served disk would hold if the power were cut now: read from the backing file, whatever the page cache
    /// says. A file system is mounted from a copy, as after a crash.
    pub fn after_power_cut(&self) -> Result<Vec<u8>> {
        if self.file_system.is_none() {
            return Ok(fs::read(backing(&self.tmpfs))?);
        }
        let scratch = Mount::tmpfs(&self.dir.path().join("cut"), 2 * (SIZE + EXT4_OVERHEAD))?;
        let copy = scratch.path().join("copy");
        fs::copy(backing(&self.tmpfs), &copy).context("cannot copy the backing file")?;
        let device = LoopDevice::over(&copy)?;
        let mounted = Mount::ext4(device.path(), &self.dir.path().join("remounted"))?;
        let content = fs::read(mounted.path().join("disk.img"))?;
        mounted.unmount()?;
        Ok(content)
    }

    /// Leaves the tmpfs without a free page.
    fn fill(&self) -> Result<()> {
        let filler = File::create_new(self.tmpfs.path().join("filler"))?;
        let mut len = 0;
        loop {
            let seen = statvfs(self.tmpfs.path())?;
            let free = seen.blocks_free() * seen.fragment_size();
            if free == 0 {
                return Ok(());
            }
            fallocate(&filler, FallocateFlags::empty(), len, free.cast_signed())?;
            len += free.cast_signed();
        }
    }
}

/// Where the marked blocks are, in order.
fn marked_ranges(backing: &File) -> Result<Vec<Range<u64>>> {
    let mut content = vec![0; usize::try_from(backing.metadata()?.len())?];
    backing.read_exact_at(&mut content, 0)?;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (number, block) in (0_u64..).zip(content.chunks(BLOCK)) {
        let start = number * BLOCK as u64;
        let end = start + BLOCK as u64;
        match ranges.last_mut() {
            _ if !block.starts_with(MARK) => {}
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    let found: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    ensure!(found == HALF, "{found} bytes of the half that shall fail are on the loop device, not {HALF}");
    Ok(ranges)
}

/// Makes holes of ranges.
fn take_away(backing: &File, ranges: &[Range<u64>]) -> Result<()> {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for Range { start, end } in ranges {
        fallocate(backing, hole, start.cast_signed(), (end - start).cast_signed())?;
    }
    Ok(())
}

fn backing(tmpfs: &Mount) -> PathBuf {
    tmpfs.path().join("backing")
}

/// The good half is full of [`OLD`]; each block of the other one begins with [`MARK`].
fn write_image(mut to: &File) -> Result<()> {
    let mut block = vec![OLD; BLOCK];
    let half = usize::try_from(HALF)?;
    to.write_all(&block.repeat(half / BLOCK))?;
    block[..MARK.len()].copy_from_slice(MARK);
    to.write_all(&block.repeat(half / BLOCK))?;
    Ok(to.sync_all()?)
}

/// What the good half holds before anything is written.
pub const OLD: u8 = 0xa5;
