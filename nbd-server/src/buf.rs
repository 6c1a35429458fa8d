//! Memory for payloads: owned, page-aligned, pooled and counted.
//!
//! An [`IoBuf`] is owned on its way down to the disk and on its way back, which io_uring will
//! need and which lets a write-back layer keep a payload after the reply. Dropped buffers go back
//! to their [`Pool`], which cuts those of one page out of slabs: aligned one by one, each would cost
//! the allocator two. The [`Budget`] bounds what all connections together may hold.

mod budget;

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

pub use budget::{Account, Budget, Grant, Place};

const PAGE: usize = 4096;
/// Classes of pooled buffers: one page, two, four … 32 MiB.
const CLASSES: usize = 14;
/// Bytes of a slab, out of which buffers of one page are cut.
const SLAB: usize = 1 << 20;
/// Bytes of free buffers the pool keeps for the next request; the rest goes back to the system.
/// Single pages are given back only when none is in use: one alone holds its slab.
const POOL_KEEPS_MAX: usize = 32 << 20;

/// An owned, page-aligned buffer of a fixed length.
#[derive(Debug)]
pub struct IoBuf {
    /// At least `len` bytes.
    bytes: BytesMut,
    len: usize,
    home: Option<Arc<Pool>>,
}

impl IoBuf {
    /// Bytes of memory that it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// A buffer of `len` zeroes outside any pool.
    #[must_use]
    pub fn zeroed(len: usize) -> IoBuf {
        IoBuf { bytes: aligned(len), len, home: None }
    }
}

/// Zeroes that begin at a page.
fn aligned(len: usize) -> BytesMut {
    let mut bytes = BytesMut::zeroed(len + PAGE);
    let mut bytes = bytes.split_off(bytes.as_ptr().align_offset(PAGE));
    bytes.truncate(len);
    bytes
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
        &self.bytes[..self.len]
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.put(std::mem::take(&mut self.bytes));
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
    /// Free buffers of one page.
    pages: Vec<BytesMut>,
    /// How many more are in use.
    pages_used: usize,
    /// What is left of the newest slab.
    slab: BytesMut,
    /// Free buffers of the other classes.
    longer: [Vec<BytesMut>; CLASSES],
    longer_bytes: usize,
}

impl Pool {
    /// A buffer of `len` bytes whose content is whatever it last held: whoever takes it fills it.
    #[must_use]
    pub fn take(self: &Arc<Pool>, len: usize) -> IoBuf {
        let bytes = match class_of(len) {
            0 => Some(lock(&self.free).take_page()),
            class @ 1..CLASSES => lock(&self.free).take_longer(class),
            _ => None,
        };
        let bytes = bytes.unwrap_or_else(|| aligned(size_for(len)));
        IoBuf { bytes, len, home: Some(self.clone()) }
    }

    fn put(&self, bytes: BytesMut) {
        let mut free = lock(&self.free);
        match class_of(bytes.len()) {
            0 => free.put_page(bytes),
            class @ 1..CLASSES if free.longer_bytes + bytes.len() <= POOL_KEEPS_MAX => {
                free.longer_bytes += bytes.len();
                free.longer[class].push(bytes);
            }
            _ => {}
        }
    }
}

impl Free {
    fn take_page(&mut self) -> BytesMut {
        self.pages_used += 1;
        self.pages.pop().unwrap_or_else(|| {
            if self.slab.is_empty() {
                self.slab = aligned(SLAB);
            }
            self.slab.split_to(PAGE)
        })
    }

    fn put_page(&mut self, page: BytesMut) {
        self.pages_used -= 1;
        self.pages.push(page);
        if self.pages_used == 0 && self.pages.len() * PAGE > POOL_KEEPS_MAX {
            (self.pages, self.slab) = Default::default();
        }
    }

    fn take_longer(&mut self, class: usize) -> Option<BytesMut> {
        let bytes = self.longer[class].pop()?;
        self.longer_bytes -= bytes.len();
        Some(bytes)
    }
}

/// Bytes of memory that a pooled buffer for `len` takes: those of its class, if there is one.
#[must_use]
pub fn size_for(len: usize) -> usize {
    match class_of(len) {
        class @ 0..CLASSES => PAGE << class,
        _ => len,
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
        assert_eq!(lock(&pool.free).longer_bytes, 8192);
        drop((pool.take(8192), pool.take(100)));
        let free = lock(&pool.free);
        assert_eq!((free.longer_bytes, free.pages.len()), (8192, 1));
    }

    #[test]
    fn single_pages_do_not_overlap_and_are_given_back_together() {
        let pool = Arc::new(Pool::default());
        let mut bufs: Vec<IoBuf> = (0..POOL_KEEPS_MAX / PAGE + 1).map(|_| pool.take(PAGE)).collect();
        let mark = |n: usize| u8::try_from(n % 251).unwrap();
        for (n, buf) in bufs.iter_mut().enumerate() {
            assert_eq!(buf.as_ptr() as usize % PAGE, 0);
            buf.fill(mark(n));
        }
        assert!(bufs.iter().enumerate().all(|(n, buf)| buf.iter().all(|byte| *byte == mark(n))));
        let last = bufs.pop();
        drop(bufs);
        assert_eq!(lock(&pool.free).pages.len(), POOL_KEEPS_MAX / PAGE);
        drop(last);
        assert_eq!(lock(&pool.free).pages.len(), 0);
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let pool = Arc::new(Pool::default());
        let bufs: Vec<IoBuf> = (0..3).map(|_| pool.take(32 << 20)).collect();
        drop(bufs);
        assert_eq!(lock(&pool.free).longer_bytes, POOL_KEEPS_MAX);
    }
}
