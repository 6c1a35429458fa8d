//! The space that a file takes: which of its ranges are holes, and how to make some.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FallocateFlags, fallocate};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::device::{Content, EXTENTS_MAX, Extent, push_extent};

/// Unit of a file's blocks in its metadata (`st_blocks`).
const BLOCK: u64 = 512;

/// Whether the file has as many blocks as its size takes: holes can hardly be found then, and are not
/// looked for.
pub(super) fn is_full(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.blocks() * BLOCK >= metadata.len())
}

/// What the range is made of, as the file system tells.
pub(super) fn extents(file: &File, at: u64, len: u64) -> io::Result<Vec<Extent>> {
    let end = at + len;
    let (mut extents, mut place) = (Vec::new(), at);
    while place < end && extents.len() < EXTENTS_MAX {
        // A file system that cannot tell says that all is data.
        let data = seek(file, SeekFrom::Data(place))?.unwrap_or(end).min(end);
        push_extent(&mut extents, Content::Hole, data - place);
        if data < end {
            place = seek(file, SeekFrom::Hole(data))?.unwrap_or(end).min(end);
            push_extent(&mut extents, Content::Data, place - data);
        } else {
            place = end;
        }
    }
    Ok(extents)
}

/// Where the next data or hole is; nothing if there is none. The descriptor's position means
/// nothing to anybody.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives the range's space back; it reads as zero.
pub(super) fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    reshape(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len)
}

/// Makes the range read as zero and keeps it allocated.
pub(super) fn zero_range(file: &File, at: u64, len: u64) -> io::Result<()> {
    reshape(file, FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len)
}

fn reshape(file: &File, flags: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let (at, len) = (signed(at)?, signed(len)?);
    loop {
        match fallocate(file, flags, at, len) {
            Ok(()) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}
