//! Around the page cache (`O_DIRECT`): what is written is on its way to the disk, what is read comes from
//! it, and no memory of the host is taken for either.
//!
//! The kernel then takes whole blocks only. Requests for parts of blocks are served by reading the blocks,
//! and writes of parts exclude each other, as two of them may be about the same block.

use std::fs::File;
use std::io;

use futures::lock::Mutex;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::storage::Storage;
use crate::buf::IoBuf;

/// What a file needs to be known to take, where the kernel cannot tell (before Linux 6.1): a page.
const CAUTIOUS: u64 = 4096;

/// How a file is reached around the page cache.
pub(super) struct Direct {
    /// Bytes of a block: requests begin and end at multiples of it.
    block: u64,
    /// Held by the write of a part of a block.
    parts: Mutex<()>,
}

impl Direct {
    /// For a file that was opened with `O_DIRECT` and has `size` bytes.
    pub(super) fn new(file: &File, size: u64) -> io::Result<Direct> {
        let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        let told = told.filter(|told| told.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        let block =
            told.map_or(CAUTIOUS, |told| told.stx_dio_offset_align.max(told.stx_dio_mem_align).into());
        if block == 0 || !block.is_power_of_two() || block > CAUTIOUS {
            return Err(io::Error::other("its file system has no direct I/O that is of use"));
        }
        if !size.is_multiple_of(block) {
            let nearest = size.next_multiple_of(block);
            return Err(io::Error::other(format!(
                "direct I/O takes blocks of {block} bytes, and its size of {size} is no multiple of that; \
                 {nearest} is the nearest above"
            )));
        }
        Ok(Direct { block, parts: Mutex::new(()) })
    }

    /// Whether a range is made of whole blocks.
    pub(super) fn is_whole(&self, at: u64, len: u64) -> bool {
        at.is_multiple_of(self.block) && len.is_multiple_of(self.block)
    }

    /// The whole blocks that a range touches: the first one's place, and their bytes.
    fn around(&self, at: u64, len: usize) -> (u64, usize) {
        let start = at - at % self.block;
        let end = (at + len as u64).next_multiple_of(self.block);
        (start, usize::try_from(end - start).expect("a request is bounded"))
    }

    /// The whole blocks inside a range, if there are any.
    pub(super) fn inside(&self, at: u64, len: u64) -> Option<(u64, u64)> {
        let (start, end) = (at.next_multiple_of(self.block), (at + len) / self.block * self.block);
        (start < end).then(|| (start, end - start))
    }

    /// Reads parts of blocks.
    pub(super) async fn read_parts(&self, storage: &Storage, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        let (start, len) = self.around(at, buf.len());
        let blocks = storage.read_waiting(start, IoBuf::zeroed(len), 0).await?;
        let len = buf.len();
        buf.copy_from_slice(&blocks[offset(start, at)..][..len]);
        Ok(buf)
    }

    /// Writes parts of blocks.
    pub(super) async fn write_parts(&self, storage: &Storage, at: u64, data: &IoBuf) -> io::Result<()> {
        let (start, len) = self.around(at, data.len());
        let _alone = self.parts.lock().await;
        let mut blocks = storage.read_waiting(start, IoBuf::zeroed(len), 0).await?;
        blocks[offset(start, at)..][..data.len()].copy_from_slice(data);
        storage.write_waiting(start, blocks).await
    }
}

fn offset(start: u64, at: u64) -> usize {
    usize::try_from(at - start).expect("it is less than a block")
}
