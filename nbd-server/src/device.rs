//! The contract of storage: backends that store bytes, and layers that change their behaviour.
//!
//! Three traits, because their defaults differ. A [`Backend`] stores bytes, and what it lacks is
//! *emulated* above it, once, in [`leaf`]. A [`Layer`] changes behaviour, and what it does not
//! override is *passed on*. A [`Device`] is what both become: object-safe, nothing optional, never
//! implemented by hand.
//!
//! Storage promises nothing about durability but what [`Device::flush`] says; FLUSH, FUA and the order of
//! requests are kept above it, by [`Durability`](crate::durability::Durability), and sessions talk to that.
//!
//! Futures are polled on the thread that made them and need not be `Send`; devices themselves are
//! shared by all workers. A future does nothing before it is polled, and there is no order between
//! requests in flight.

mod extent;
mod layered;
mod leaf;

use std::cell::Cell;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use common::command::Zeroing;

use crate::buf::{IoBuf, Slice};
pub use extent::{Content, EXTENTS_MAX, Extent, overlaid, push_extent};
use layered::Layered;
use leaf::Leaf;

/// A device's answer in the making. Once polled it runs to completion: dropping it does not undo it.
pub type Io<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + 'a>>;

/// What a device can do. Layers edit it, the handshake prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Smallest efficient request in bytes, a power of two of at least 512.
    pub block_preferred: u32,
    /// Syncs that may run at once, each through an open file description of its own: Linux tells a failed
    /// write-back once per description, so that every sync is told what it must know.
    pub syncs: usize,
    /// Whether TRIM gives space back.
    pub trim: Support,
    /// Whether the device knows its holes; else all of it is data.
    pub sparse: Support,
    /// Whether every connection sees the same data and one flush covers them all.
    pub coherent: bool,
    /// Whether the medium spins.
    pub rotational: bool,
}

impl Shape {
    /// A writable device of `size` bytes that does everything itself.
    #[must_use]
    pub fn capable(size: u64) -> Shape {
        Shape {
            size,
            read_only: false,
            block_preferred: 4096,
            syncs: 1,
            trim: Support::Native,
            sparse: Support::Emulate,
            coherent: true,
            rotational: false,
        }
    }
}

/// How something is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// The device does it itself.
    Native,
    /// It is made up from other operations, or not offered.
    Emulate,
}

/// Data in one or more parts, and its place.
pub struct Piece {
    /// The first byte's place.
    pub at: u64,
    /// What to store there, one after the other.
    pub parts: Vec<Slice>,
}

impl Piece {
    /// Bytes of all parts together; there is at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there are no empty pieces")]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// All parts in one buffer.
    #[must_use]
    pub fn gather(&self) -> IoBuf {
        let mut data = IoBuf::zeroed(self.len());
        let mut rest = &mut data[..];
        for part in &self.parts {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        data
    }
}

/// Implement to store bytes.
///
/// Ranges are inside the device. Errors are the host's own, lossless.
#[expect(async_fn_in_trait, reason = "futures stay on their worker and need no Send bound")]
pub trait Backend: Send + Sync + 'static {
    /// What it can do; never changes.
    fn shape(&self) -> Shape;
    /// Fills the buffer from byte `at`.
    async fn read(&self, at: u64, buf: IoBuf) -> io::Result<IoBuf>;
    /// Stores the data at byte `at`.
    async fn write(&self, at: u64, data: IoBuf) -> io::Result<()>;
    /// Stores several pieces of data that do not overlap, none of them durable, each at its byte.
    /// Of one that fails nobody knows which were stored.
    async fn write_many(&self, pieces: Vec<Piece>) -> io::Result<()> {
        for piece in pieces {
            self.write(piece.at, piece.gather()).await?;
        }
        Ok(())
    }
    /// Makes every write that has returned stable. A failure may mean that such writes are lost, and may
    /// be told once: called again, this may succeed although they are. `sync` numbers the syncs that may run
    /// at once, and each number is used once at a time.
    async fn flush(&self, sync: usize) -> io::Result<()>;
    /// Stores the data and makes it stable with everything before it. Of a failure of the second half,
    /// [`is_sync_failure`] is true.
    async fn write_and_flush(&self, at: u64, data: IoBuf, sync: usize) -> io::Result<()> {
        self.write(at, data).await?;
        self.flush(sync).await.map_err(sync_failure)
    }
    /// Makes `len` bytes read as zero without writing them, or fails with
    /// [`io::ErrorKind::Unsupported`] having changed nothing that a write of zeroes does not fix;
    /// with [`Speed::Fast`](common::command::Speed::Fast), having changed nothing at all.
    async fn zero(&self, _at: u64, _len: u64, _how: Zeroing) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Gives space back where it can; called only if the shape says `Native`.
    async fn trim(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// What the range is made of, from its beginning; called only if the shape says that it is
    /// sparse. At least one extent, at most [`EXTENTS_MAX`]; they may end before the range does.
    async fn extents(&self, _at: u64, len: u64) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { len, content: Content::Data }])
    }
    /// Brings the range nearer, for reads to come; a wish.
    async fn cache(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A stack of layers over a backend. Made by [`leaf`] and [`layered`], never implemented by hand.
pub trait Device: Send + Sync {
    /// What it can do.
    fn shape(&self) -> Shape;
    /// Fills the buffer from byte `at`.
    fn read(&self, at: u64, buf: IoBuf) -> Io<'_, IoBuf>;
    /// Stores the data at byte `at`.
    fn write(&self, at: u64, data: IoBuf) -> Io<'_, ()>;
    /// Stores several pieces that do not overlap, none of them durable.
    fn write_many(&self, pieces: Vec<Piece>) -> Io<'_, ()>;
    /// See [`Backend::flush`].
    fn flush(&self, sync: usize) -> Io<'_, ()>;
    /// See [`Backend::write_and_flush`].
    fn write_and_flush(&self, at: u64, data: IoBuf, sync: usize) -> Io<'_, ()>;
    /// Makes `len` bytes read as zero. Fails with [`io::ErrorKind::Unsupported`] only if it must be
    /// fast and cannot.
    fn zero(&self, at: u64, len: u64, how: Zeroing) -> Io<'_, ()>;
    /// Gives space back where it can.
    fn trim(&self, at: u64, len: u64) -> Io<'_, ()>;
    /// What the range is made of, from its beginning: at least one extent, at most about
    /// [`EXTENTS_MAX`]; they may end before the range does.
    fn extents(&self, at: u64, len: u64) -> Io<'_, Vec<Extent>>;
    /// Brings the range nearer, for reads to come.
    fn cache(&self, at: u64, len: u64) -> Io<'_, ()>;
}

/// Implement to change behaviour; every default passes on.
pub trait Layer: Send + Sync + 'static {
    /// Edits what the device below can do.
    fn shape(&self, below: Shape) -> Shape {
        below
    }
    /// See [`Device::read`].
    fn read<'a>(&'a self, below: &'a dyn Device, at: u64, buf: IoBuf) -> Io<'a, IoBuf> {
        below.read(at, buf)
    }
    /// See [`Device::write`].
    fn write<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf) -> Io<'a, ()> {
        below.write(at, data)
    }
    /// See [`Device::write_many`].
    fn write_many<'a>(&'a self, below: &'a dyn Device, pieces: Vec<Piece>) -> Io<'a, ()> {
        below.write_many(pieces)
    }
    /// See [`Device::flush`].
    fn flush<'a>(&'a self, below: &'a dyn Device, sync: usize) -> Io<'a, ()> {
        below.flush(sync)
    }
    /// See [`Backend::write_and_flush`]. Passed on as what it is only by a layer that changes neither half.
    fn write_and_flush<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, sync: usize) -> Io<'a, ()> {
        Box::pin(async move {
            self.write(below, at, data).await?;
            self.flush(below, sync).await
        })
    }
    /// See [`Device::zero`].
    fn zero<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, how: Zeroing) -> Io<'a, ()> {
        below.zero(at, len, how)
    }
    /// See [`Device::trim`].
    fn trim<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64) -> Io<'a, ()> {
        below.trim(at, len)
    }
    /// See [`Device::extents`].
    fn extents<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64) -> Io<'a, Vec<Extent>> {
        below.extents(at, len)
    }
    /// See [`Device::cache`].
    fn cache<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64) -> Io<'a, ()> {
        below.cache(at, len)
    }
}

/// How a thread lets its others have their turn.
pub type GiveWay = fn() -> Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    static GIVE_WAY: Cell<Option<GiveWay>> = const { Cell::new(None) };
}

/// Has this thread let its others have their turn in that way: a runtime counts among them who waits for a socket, and
/// looks at sockets now and then only while somebody has something to do.
pub fn set_give_way(how: GiveWay) {
    GIVE_WAY.set(Some(how));
}

/// Lets the others on this thread have their turn.
pub async fn give_way() {
    if let Some(how) = GIVE_WAY.get() {
        return how().await;
    }
    let mut gave = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Puts a backend at the bottom of a stack and emulates what it lacks.
pub fn leaf(backend: impl Backend) -> Arc<dyn Device> {
    Arc::new(Leaf(backend))
}

/// Puts a layer on top of a stack.
#[must_use]
pub fn layered(layer: Box<dyn Layer>, below: Arc<dyn Device>) -> Arc<dyn Device> {
    Arc::new(Layered { layer, below })
}

/// Marks an error as a failed sync: writes that had returned before it may be lost.
#[must_use]
pub fn sync_failure(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), SyncFailure(error))
}

/// Whether the error was marked by [`sync_failure`].
#[must_use]
pub fn is_sync_failure(error: &io::Error) -> bool {
    error.get_ref().and_then(<dyn Error + Send + Sync>::downcast_ref::<SyncFailure>).is_some()
}

/// Marks an error of a read with the byte of the device at which it was met.
#[must_use]
pub fn read_failure(at: u64, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), ReadFailure { at, error })
}

/// Where a read failed, if its error was marked by [`read_failure`].
#[must_use]
pub fn failed_at(error: &io::Error) -> Option<u64> {
    let failure = error.get_ref().and_then(<dyn Error + Send + Sync>::downcast_ref::<ReadFailure>)?;
    Some(failure.at)
}

#[derive(Debug, thiserror::Error)]
#[error("reading byte {at} failed: {error}")]
struct ReadFailure {
    at: u64,
    #[source]
    error: io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("making writes durable failed: {0}")]
struct SyncFailure(#[source] io::Error);
