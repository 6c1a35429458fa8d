//! Operations that answer at once or not at all.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags};

/// Longest read or write that is tried inline: copying more would hold up the worker's other connections
/// for longer than a hop to a thread costs.
pub const COPY_MAX: usize = 256 << 10;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of `include/uapi/linux/magic.h`.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// File systems of local disks, to which io_uring hands reads and writes without waiting for them: ext4, XFS, Btrfs,
/// F2FS and bcachefs, by their numbers in `include/uapi/linux/magic.h` and their own headers.
const OF_LOCAL_DISKS: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e];

/// Whether the file has no disk to wait for: nothing done to it needs a thread. Of such files the kernel
/// cannot tell what [`read_cached`] wants to know.
#[must_use]
pub fn is_in_memory(file: &File) -> bool {
    // A device's node lies in memory, too.
    is_regular(file) && is_on_one_of(file, &IN_MEMORY)
}

/// Whether io_uring_enter(2) returns at once though the disk does not. FUSE says that it does not wait, and waits for its
/// daemon.
#[must_use]
pub fn is_submitted_at_once(file: &File) -> bool {
    !is_regular(file) || is_on_one_of(file, &OF_LOCAL_DISKS)
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|told| told.is_file())
}

fn is_on_one_of(file: &File, kinds: &[i64]) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|told| kinds.contains(&told.f_type))
}

/// Reads what the page cache holds, without ever waiting for the disk.
///
/// Returns the bytes read from byte `at`: fewer than asked for, possibly none, where the rest is
/// not cached, the file system cannot tell, or the file ends.
pub fn read_cached(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut slices = [IoSliceMut::new(buf)];
    match rustix::io::preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
