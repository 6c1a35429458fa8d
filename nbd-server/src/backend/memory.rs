//! Memory: a sparse array of chunks, gone when the server ends.
//!
//! Also the simplest backend to read first: three functions and a shape.

use std::io;
use std::sync::{PoisonError, RwLock};

use common::command::{Hole, Speed, Zeroing};

use crate::buf::IoBuf;
use crate::device::{Backend, Content, EXTENTS_MAX, Extent, Shape, Support, give_way, push_extent};

/// Bytes per chunk: small enough to be sparse, large enough that a TiB has few.
const CHUNK: usize = 256 << 10;

/// Chunks looked at for one answer about extents: a worker waits for it, and so do its other clients.
const LOOK_MAX: usize = 16 << 10;

/// Chunks before others have their turn: of those that are copied, and of those that are let go of.
const COPIED_AT_ONCE: usize = 1;
const FREED_AT_ONCE: usize = 16;

/// Serves memory; chunks never written cost nothing.
pub struct MemoryBackend {
    chunks: Vec<RwLock<Option<Box<[u8]>>>>,
    size: u64,
}

impl MemoryBackend {
    /// `size` bytes of zeroes.
    pub fn new(size: u64) -> io::Result<MemoryBackend> {
        let count = usize::try_from(size.div_ceil(CHUNK as u64)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(count).map_err(|_| io::ErrorKind::OutOfMemory)?;
        chunks.resize_with(count, RwLock::default);
        Ok(MemoryBackend { chunks, size })
    }

    /// Splits a range at chunk borders: which chunk, where in it, where in the range, how long.
    fn pieces(at: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let place = usize::try_from(at).ok()? + done;
            let (chunk, start) = (place / CHUNK, place % CHUNK);
            let piece = (CHUNK - start).min(len - done);
            done += piece;
            Some((chunk, start, done - piece, piece))
        })
    }
}

/// Before each chunk of that number whose predecessors take a fraction of a millisecond.
async fn others_have_their_turn(number: usize, at_once: usize) {
    if number > 0 && number.is_multiple_of(at_once) {
        give_way().await;
    }
}

impl Backend for MemoryBackend {
    fn shape(&self) -> Shape {
        Shape { sparse: Support::Native, ..Shape::capable(self.size) }
    }

    async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        for (number, (chunk, start, done, len)) in Self::pieces(at, buf.len()).enumerate() {
            others_have_their_turn(number, COPIED_AT_ONCE).await;
            let chunk = self.chunks[chunk].read().unwrap_or_else(PoisonError::into_inner);
            match &*chunk {
                Some(bytes) => buf[done..done + len].copy_from_slice(&bytes[start..start + len]),
                None => buf[done..done + len].fill(0),
            }
        }
        Ok(buf)
    }

    async fn write(&self, at: u64, data: IoBuf) -> io::Result<()> {
        for (number, (chunk, start, done, len)) in Self::pieces(at, data.len()).enumerate() {
            others_have_their_turn(number, COPIED_AT_ONCE).await;
            let mut chunk = self.chunks[chunk].write().unwrap_or_else(PoisonError::into_inner);
            let bytes = chunk.get_or_insert_with(|| vec![0; CHUNK].into());
            bytes[start..start + len].copy_from_slice(&data[done..done + len]);
        }
        Ok(())
    }

    async fn flush(&self, _sync: usize) -> io::Result<()> {
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64, how: Zeroing) -> io::Result<()> {
        if how.hole == Hole::Forbidden {
            // Written zeroes keep their chunk allocated.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        for (number, (chunk, start, _, len)) in Self::pieces(at, len).enumerate() {
            others_have_their_turn(number, FREED_AT_ONCE).await;
            let mut chunk = self.chunks[chunk].write().unwrap_or_else(PoisonError::into_inner);
            match &mut *chunk {
                Some(_) if len == CHUNK => *chunk = None,
                Some(bytes) => bytes[start..start + len].fill(0),
                None => {}
            }
        }
        Ok(())
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        self.zero(at, len, Zeroing { hole: Hole::Allowed, speed: Speed::Any }).await
    }

    async fn extents(&self, at: u64, len: u64) -> io::Result<Vec<Extent>> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut extents = Vec::new();
        for (chunk, _, _, len) in Self::pieces(at, len).take(LOOK_MAX) {
            let chunk = self.chunks[chunk].read().unwrap_or_else(PoisonError::into_inner);
            let content = if chunk.is_some() { Content::Data } else { Content::Hole };
            push_extent(&mut extents, content, len as u64);
            if extents.len() == EXTENTS_MAX {
                break;
            }
        }
        Ok(extents)
    }
}
