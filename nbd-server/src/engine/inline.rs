//! Operations that answer at once or not at all.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags};

/// Longest read or write that is tried inline: copying more would hold up the worker's other connections
/// for longer than a hop to a thread costs.
pub const COPY_MAX: usize = 256 << 10;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of `include/uapi/linux/magic.h`.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether the file has no disk to wait for: nothing done to it needs a thread. Of such files the kernel
/// cannot tell what [`read_cached`] wants to know.
#[must_use]
pub fn is_in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|told| IN_MEMORY.contains(&told.f_type))
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
