//! What files and block devices share: reading, writing, syncing and punching one descriptor.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use common::command::Fua;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use rustix::fs::SeekFrom;
use rustix::io::{Errno, ReadWriteFlags};

use crate::buf::IoBuf;
use crate::device::{Content, EXTENTS_MAX, Extent, Piece, push_extent, read_failure, sync_failure};
use crate::engine::{Pool, inline};

/// Bytes that are read ahead at most for one request: what a client then reads in a few of them.
const AHEAD_MAX: i64 = 64 << 20;
/// Bytes that are read ahead at a time: the kernel's usual window (`read_ahead_kb`).
const AHEAD_PIECE: usize = 128 << 10;
/// Unit of a file's blocks in its metadata (`st_blocks`).
const BLOCK: u64 = 512;
/// Slices the kernel takes at a time (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// An open descriptor and the engine that drives it.
pub(super) struct Storage {
    file: Arc<File>,
    pool: Pool,
    /// Nothing done to it waits for a disk.
    in_memory: bool,
}

impl Storage {
    pub(super) fn new(file: File, pool: Pool) -> Storage {
        let in_memory = inline::is_in_memory(&file);
        Storage { file: Arc::new(file), pool, in_memory }
    }

    pub(super) async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        let mut done = 0;
        if self.in_memory && buf.len() <= inline::COPY_MAX {
            read_on(&self.file, &mut buf, 0, at)?;
            return Ok(buf);
        }
        if buf.len() <= inline::COPY_MAX {
            done = inline::read_cached(&self.file, &mut buf, at)?;
        }
        if done == buf.len() {
            return Ok(buf);
        }
        self.run(move |file| {
            read_on(file, &mut buf, done, at)?;
            Ok(buf)
        })
        .await
    }

    pub(super) async fn write(&self, at: u64, data: IoBuf, fua: Fua) -> io::Result<()> {
        let len = data.len();
        let write = move |file: &File| match fua {
            Fua::No => file.write_all_at(&data, at),
            Fua::Yes => write_durably(file, &data, at),
        };
        if self.in_memory && len <= inline::COPY_MAX { write(&self.file) } else { self.run(write).await }
    }

    /// Whether the file has as many blocks as its size takes: holes can hardly be found then, and
    /// are not looked for.
    pub(super) fn is_full(&self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        Ok(metadata.blocks() * BLOCK >= metadata.len())
    }

    /// Has the kernel read the range ahead.
    pub(super) async fn cache(&self, at: u64, len: u64) -> io::Result<()> {
        let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let (at, len) = (signed(at)?, signed(len)?);
        self.run(move |file| {
            // One call reads no further than the kernel's window, however much it is asked for.
            for place in (at..at.saturating_add(len.min(AHEAD_MAX))).step_by(AHEAD_PIECE) {
                posix_fadvise(file, place, AHEAD_PIECE as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn write_many(&self, pieces: Vec<Piece>) -> io::Result<()> {
        self.run(move |file| {
            // Each is let go of as soon as it is written.
            pieces.into_iter().try_for_each(|piece| write_gathered(file, &piece))
        })
        .await
    }

    pub(super) async fn flush(&self) -> io::Result<()> {
        if self.in_memory { self.file.sync_data() } else { self.run(File::sync_data).await }
    }

    /// Runs `job` on the descriptor where it may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.clone();
        self.pool.run(move || job(&file)).await
    }
}

/// Writes the parts of a piece one after the other.
fn write_gathered(file: &File, piece: &Piece) -> io::Result<()> {
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

/// Writes with RWF_DSYNC, which syncs this range and no other.
///
/// The call writes, then syncs, and tells of one error. Which half failed matters: a failed sync
/// has consumed the kernel's only report of lost writes, also of earlier ones. Only a full disk is
/// known to be the write's own fault, and only if it refuses the plain write too: a sync can also
/// run out of space, and a file system that aborts after a failed sync refuses every write.
fn write_durably(file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        let rest = [IoSlice::new(&data[done..])];
        match rustix::io::pwritev2(file, &rest, at + done as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(error) => {
                let again = file.write_all_at(&data[done..], at + done as u64);
                let full = again.is_err_and(|again| is_full(&again)) && is_full(&error.into());
                return Err(if full { error.into() } else { sync_failure(error.into()) });
            }
        }
    }
    Ok(())
}

/// Reads the rest of a buffer whose first `done` bytes are read; it belongs to byte `at`.
fn read_on(file: &File, buf: &mut [u8], mut done: usize, at: u64) -> io::Result<()> {
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

/// Whether there was no room for a write.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
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
