//! A regular file. Zeroing and trimming punch holes where the file system has them.

use std::fs::File;
use std::io;

use common::command::{Fua, Hole};
use nix::fcntl::{FallocateFlags, fallocate};

use super::storage::Storage;
use crate::buf::IoBuf;
use crate::device::{Backend, Shape, Support};
use crate::engine::Pool;

/// Serves a regular file, to its last byte.
pub struct FileBackend {
    storage: Storage,
    shape: Shape,
}

impl FileBackend {
    /// Serves `file`, which is open for reading and, unless `read_only`, for writing.
    pub fn new(file: File, access: Access, pool: Pool) -> io::Result<FileBackend> {
        let size = file.metadata()?.len();
        let shape = Shape {
            size,
            read_only: access == Access::ReadOnly,
            block_preferred: 4096,
            fua: Support::Native,
            trim: if access == Access::ReadWrite { probe_punch(&file, size) } else { Support::Emulate },
            coherent: true,
            rotational: false,
        };
        Ok(FileBackend { storage: Storage::new(file, pool), shape })
    }
}

/// What a descriptor was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing.
    ReadWrite,
    /// Reading.
    ReadOnly,
}

impl Backend for FileBackend {
    fn shape(&self) -> Shape {
        self.shape
    }

    async fn read(&self, at: u64, buf: IoBuf) -> io::Result<IoBuf> {
        self.storage.read(at, buf).await
    }

    async fn write(&self, at: u64, data: IoBuf, fua: Fua) -> io::Result<()> {
        self.storage.write(at, data, fua).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.storage.flush().await
    }

    async fn zero(&self, at: u64, len: u64, hole: Hole) -> io::Result<()> {
        self.storage
            .run(move |file| match hole {
                Hole::Allowed => punch(file, at, len).or_else(|error| match error.kind() {
                    io::ErrorKind::Unsupported => zero_range(file, at, len),
                    _ => Err(error),
                }),
                Hole::Forbidden => zero_range(file, at, len),
            })
            .await
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        self.storage.run(move |file| punch(file, at, len)).await
    }
}

/// Gives the range's space back; it reads as zero.
pub(super) fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    call(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len)
}

/// Makes the range read as zero and keeps it allocated.
fn zero_range(file: &File, at: u64, len: u64) -> io::Result<()> {
    call(file, FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len)
}

fn call(file: &File, flags: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
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

/// Whether the file system can punch holes: asked beyond the end, where there is nothing to lose.
fn probe_punch(file: &File, size: u64) -> Support {
    match punch(file, size.next_multiple_of(4096), 4096) {
        Ok(()) => Support::Native,
        Err(_) => Support::Emulate,
    }
}
