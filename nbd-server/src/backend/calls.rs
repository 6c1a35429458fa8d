//! Whole reads and writes of a file, on a thread that may wait.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::device::{Piece, read_failure};

/// Slices the kernel takes at a time (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// Writes the parts of a piece one after the other.
pub(super) fn write_gathered(file: &File, piece: &Piece) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = piece.parts.iter().map(|part| IoSlice::new(part)).collect();
    let (mut rest, mut at) = (&mut slices[..], piece.at);
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(SLICES_MAX)];
        match rustix::io::pwritev(file, some, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut rest, written);
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads the rest of a buffer whose first `done` bytes are read; it belongs to byte `at`.
pub(super) fn read_rest(file: &File, buf: &mut [u8], mut done: usize, at: u64) -> io::Result<()> {
    while done < buf.len() {
        let place = at + done as u64;
        match file.read_at(&mut buf[done..], place) {
            Ok(0) => return Err(read_failure(place, io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_failure(place, error)),
        }
    }
    Ok(())
}
