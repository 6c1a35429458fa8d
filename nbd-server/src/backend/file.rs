//! A regular file. Zeroing and trimming punch holes where the file system has them.

use std::fs::File;
use std::io;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use common::command::{Hole, Zeroing};

use super::direct::Direct;
use super::space::{extents, is_full, punch, zero_range};
use super::storage::Storage;
use super::{Access, Opened};
use crate::buf::IoBuf;
use crate::device::{Backend, Content, Extent, Piece, Shape, Support};
use crate::engine::Share;

/// Serves a regular file, to its last byte.
pub struct FileBackend {
    storage: Storage,
    shape: Shape,
    /// How many holes were punched.
    punched: AtomicU64,
    /// When so many were, the file had none; see [`is_full`]. Only the server makes some.
    full_at: AtomicU64,
}

impl FileBackend {
    /// Serves `file`, which was opened so.
    pub fn new(file: File, opened: Opened, share: Share) -> io::Result<FileBackend> {
        let Opened { access, direct } = opened;
        let size = file.metadata()?.len();
        let direct = direct.then(|| Direct::new(&file, size)).transpose()?;
        let shape = Shape {
            read_only: access == Access::ReadOnly,
            trim: if access == Access::ReadWrite { probe_punch(&file, size) } else { Support::Emulate },
            sparse: Support::Native,
            ..Shape::capable(size)
        };
        let storage = Storage::new(file, direct, share)?;
        let shape = Shape { syncs: storage.syncs(), ..shape };
        Ok(FileBackend { storage, shape, punched: AtomicU64::new(0), full_at: AtomicU64::new(u64::MAX) })
    }
}

impl Backend for FileBackend {
    fn shape(&self) -> Shape {
        self.shape
    }

    async fn read(&self, at: u64, buf: IoBuf) -> io::Result<IoBuf> {
        self.storage.read(at, buf).await
    }

    async fn write(&self, at: u64, data: IoBuf) -> io::Result<()> {
        self.storage.write(at, data).await
    }

    async fn write_many(&self, pieces: Vec<Piece>) -> io::Result<()> {
        self.storage.write_many(pieces).await
    }

    async fn flush(&self, sync: usize) -> io::Result<()> {
        self.storage.flush(sync).await
    }

    async fn write_and_flush(&self, at: u64, data: IoBuf, sync: usize) -> io::Result<()> {
        self.storage.write_and_flush(at, data, sync).await
    }

    async fn zero(&self, at: u64, len: u64, how: Zeroing) -> io::Result<()> {
        if self.storage.direct.as_ref().is_some_and(|direct| !direct.is_whole(at, len)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let zeroed = self
            .storage
            .run(move |file| match how.hole {
                Hole::Allowed => punch(file, at, len).or_else(|error| match error.kind() {
                    io::ErrorKind::Unsupported => zero_range(file, at, len),
                    _ => Err(error),
                }),
                Hole::Forbidden => zero_range(file, at, len),
            })
            .await;
        self.punched.fetch_add(1, Release);
        zeroed
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        let inside = self.storage.direct.as_ref().map_or(Some((at, len)), |direct| direct.inside(at, len));
        let Some((at, len)) = inside else { return Ok(()) };
        let punched = self.storage.run(move |file| punch(file, at, len)).await;
        self.punched.fetch_add(1, Release);
        punched
    }

    async fn extents(&self, at: u64, len: u64) -> io::Result<Vec<Extent>> {
        let all_data = || Ok(vec![Extent { len, content: Content::Data }]);
        let punched = self.punched.load(Acquire);
        if self.full_at.load(Relaxed) == punched {
            return all_data();
        }
        // Even fstat(2) may wait for a disk, so a thread asks, once for a file that stays full.
        let told = self
            .storage
            .run(move |file| if is_full(file)? { Ok(None) } else { extents(file, at, len).map(Some) });
        match told.await? {
            Some(extents) => Ok(extents),
            None => {
                self.full_at.store(punched, Relaxed);
                all_data()
            }
        }
    }

    async fn cache(&self, at: u64, len: u64) -> io::Result<()> {
        self.storage.cache(at, len).await
    }
}

/// Whether the file system can punch holes: asked beyond the end, where there is nothing to lose.
fn probe_punch(file: &File, size: u64) -> Support {
    match punch(file, size.next_multiple_of(4096), 4096) {
        Ok(()) => Support::Native,
        Err(_) => Support::Emulate,
    }
}
