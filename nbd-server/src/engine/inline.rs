//! Operations that answer at once or not at all.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags};

/// Longest read that is tried inline: copying more would hold up the worker's other connections
/// for longer than a hop to a thread costs.
pub const READ_MAX: usize = 256 << 10;

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
