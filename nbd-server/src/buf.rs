//! Memory for payloads: owned, page-aligned, pooled and counted.
//!
//! An [`IoBuf`] is owned on its way down to the disk and on its way back, which io_uring will
//! need and which lets a write-back layer keep a payload after the reply. Dropped buffers go back
//! to their [`Pool`]. The [`Budget`] bounds what all connections together may hold.

mod budget;

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use budget::{Budget, Grant, Place};

const PAGE: usize = 4096;
/// Classes of pooled buffers: one page, two, four … 32 MiB.
const CLASSES: usize = 14;
/// Bytes of free buffers the pool keeps for the next request; the rest goes back to the system.
const POOL_KEEPS_MAX: usize = 32 << 20;

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// An owned, page-aligned buffer of a fixed length.
#[derive(Debug)]
pub struct IoBuf {
    pages: Pages,
    len: usize,
    home: Option<Arc<Pool>>,
}

type Pages = Vec<Page>;

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

impl IoBuf {
    /// A buffer of `len` zeroes outside any pool.
    #[must_use]
    pub fn zeroed(len: usize) -> IoBuf {
        IoBuf { pages: bytemuck::zeroed_vec(len.div_ceil(PAGE)), len, home: None }
    }
}

/// A part of bytes that several hold.
#[derive(Clone)]
pub struct Slice {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    part: Range<usize>,
}

impl Slice {
    /// The bytes in `part` of what `owner` holds.
    #[must_use]
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, part: Range<usize>) -> Slice {
        Slice { owner, part }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.part.clone()]
    }
}

impl From<&[u8]> for IoBuf {
    fn from(data: &[u8]) -> IoBuf {
        let mut buf = IoBuf::zeroed(data.len());
        buf.copy_from_slice(data);
        buf
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.len]
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.len]
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.put(std::mem::take(&mut self.pages));
        }
    }
}

/// Free buffers, by size.
#[derive(Debug, Default)]
pub struct Pool {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    classes: [Vec<Pages>; CLASSES],
    bytes: usize,
}

impl Pool {
    /// A buffer of `len` bytes whose content is whatever it last held: whoever takes it fills it.
    #[must_use]
    pub fn take(self: &Arc<Pool>, len: usize) -> IoBuf {
        let class = class_of(len);
        let mut free = lock(&self.free);
        let pages = free.classes.get_mut(class).and_then(Vec::pop);
        if let Some(pages) = &pages {
            free.bytes -= pages.len() * PAGE;
        }
        drop(free);
        let pages = pages.unwrap_or_else(|| match class < CLASSES {
            true => bytemuck::zeroed_vec(1 << class),
            false => bytemuck::zeroed_vec(len.div_ceil(PAGE)),
        });
        IoBuf { pages, len, home: Some(self.clone()) }
    }

    fn put(&self, pages: Pages) {
        let bytes = pages.len() * PAGE;
        let mut free = lock(&self.free);
        if free.bytes + bytes > POOL_KEEPS_MAX {
            return;
        }
        let class = class_of(bytes);
        if let Some(list) = free.classes.get_mut(class).filter(|_| pages.len() == 1 << class) {
            list.push(pages);
            free.bytes += bytes;
        }
    }
}

/// The smallest class that holds `len` bytes.
fn class_of(len: usize) -> usize {
    len.div_ceil(PAGE).max(1).next_power_of_two().trailing_zeros() as usize
}

/// Locks a mutex whose holders never leave their data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = Arc::new(Pool::default());
        let buf = pool.take(5000);
        assert_eq!((buf.len(), buf.as_ptr() as usize % PAGE), (5000, 0));
        drop(buf);
        assert_eq!(lock(&pool.free).bytes, 8192);
        drop((pool.take(8192), pool.take(100)));
        assert_eq!(lock(&pool.free).bytes, 8192 + 4096);
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let pool = Arc::new(Pool::default());
        let bufs: Vec<IoBuf> = (0..3).map(|_| pool.take(32 << 20)).collect();
        drop(bufs);
        assert_eq!(lock(&pool.free).bytes, POOL_KEEPS_MAX);
    }
}
