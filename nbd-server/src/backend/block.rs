//! A block device. Zeroing and discarding work on whole sectors, so the edges are written.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::command::{Hole, Speed, Zeroing};

use super::direct::Direct;
use super::space::punch;
use super::storage::Storage;
use super::{Access, Opened};
use crate::buf::IoBuf;
use crate::device::{Backend, Piece, Shape, Support};
use crate::engine::{Share, ioctl};

/// Serves a block device.
pub struct BlockBackend {
    storage: Storage,
    shape: Shape,
    sector: u64,
}

impl BlockBackend {
    /// Serves `device`, which was opened so.
    pub fn new(mut device: File, opened: Opened, share: Share) -> io::Result<BlockBackend> {
        let Opened { access, direct } = opened;
        let size = device.seek(SeekFrom::End(0))?;
        let direct = direct.then(|| Direct::new(&device, size)).transpose()?;
        let queue = Queue::of(&device)?;
        let sector = queue.number("logical_block_size").unwrap_or(512).max(512);
        let physical = queue.number("physical_block_size").unwrap_or(4096);
        let shape = Shape {
            read_only: access == Access::ReadOnly,
            block_preferred: u32::try_from(physical).unwrap_or(4096).next_power_of_two().max(4096),
            trim: match queue.number("discard_max_bytes") {
                Some(1..) => Support::Native,
                _ => Support::Emulate,
            },
            rotational: queue.number("rotational") == Some(1),
            ..Shape::capable(size)
        };
        let storage = Storage::new(device, direct, share)?;
        let shape = Shape { syncs: storage.syncs(), ..shape };
        Ok(BlockBackend { storage, shape, sector })
    }
}

impl Backend for BlockBackend {
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
        let by_parts = self.storage.direct.as_ref().is_some_and(|direct| !direct.is_whole(at, len));
        let sectors = Sectors::inside(at, len, self.sector).filter(|_| !by_parts);
        let Some(sectors) = sectors else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.storage
            .run(move |device| {
                // Fallocate on a block device may unmap; BLKZEROOUT keeps the space, and where
                // the device has no command for it the kernel writes zeroes.
                let punched = match how.hole {
                    Hole::Allowed => punch(device, sectors.at, sectors.len),
                    Hole::Forbidden => Err(io::ErrorKind::Unsupported.into()),
                };
                match how.speed {
                    Speed::Fast => punched?,
                    Speed::Any => punched.or_else(|_| ioctl::zero_out(device, sectors.at, sectors.len))?,
                }
                write_zeroes(device, at, sectors.at)?;
                write_zeroes(device, sectors.at + sectors.len, at + len)
            })
            .await
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        let Some(sectors) = Sectors::inside(at, len, self.sector) else { return Ok(()) };
        self.storage.run(move |device| ioctl::discard(device, sectors.at, sectors.len)).await
    }

    async fn cache(&self, at: u64, len: u64) -> io::Result<()> {
        self.storage.cache(at, len).await
    }
}

/// The whole sectors inside a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sectors {
    at: u64,
    len: u64,
}

impl Sectors {
    fn inside(at: u64, len: u64, sector: u64) -> Option<Sectors> {
        let start = at.next_multiple_of(sector);
        let end = (at + len) / sector * sector;
        (start < end).then(|| Sectors { at: start, len: end - start })
    }
}

/// Writes less than a sector of zeroes.
fn write_zeroes(device: &File, from: u64, to: u64) -> io::Result<()> {
    let len = usize::try_from(to - from).map_err(|_| io::ErrorKind::InvalidInput)?;
    device.write_all_at(&vec![0; len], from)
}

/// The device's queue limits in sysfs; a partition's are its disk's.
struct Queue(std::path::PathBuf);

impl Queue {
    fn of(device: &File) -> io::Result<Queue> {
        let number = device.metadata()?.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let node = std::path::PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let own = node.join("queue");
        Ok(Queue(if own.exists() { own } else { node.join("../queue") }))
    }

    fn number(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(self.0.join(name)).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_sectors_are_inside() {
        let inside = |at, len| Sectors::inside(at, len, 512).map(|s| (s.at, s.len));
        assert_eq!(inside(0, 512), Some((0, 512)));
        assert_eq!(inside(1, 1024), Some((512, 512)));
        assert_eq!(inside(1, 600), None);
        assert_eq!(inside(511, 514), Some((512, 512)));
        assert_eq!(inside(512, 0), None);
    }
}
