//! Whether a thread may block for the one file it serves.
//!
//! A buffered write rarely waits for the disk, and a hop to another thread costs more than the write. A
//! worker all of whose connections use the same export delays nobody else by waiting, so it writes by itself.
//! Should the disk hang, the worker is seen to be [stuck](Seat::is_stuck) and is given no other connection.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// A thread that has been at one operation for so long serves nobody else for now.
pub const STUCK_AFTER: Duration = Duration::from_millis(5);

/// Not at anything.
const FREE: u64 = u64::MAX;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    static SEAT: RefCell<Option<Arc<Seat>>> = const { RefCell::new(None) };
}

/// What is known of a worker's thread.
#[derive(Debug)]
pub struct Seat {
    /// Connections that share the one export that it serves; none if it serves several.
    together: AtomicUsize,
    /// Microseconds from [`START`] to the beginning of what it is at.
    since: AtomicU64,
    /// Connections that were given to it and have not ended.
    connections: AtomicUsize,
}

/// A connection's share of a thread, until it is dropped.
#[derive(Debug)]
pub struct Occupied(Arc<Seat>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

impl Default for Seat {
    fn default() -> Seat {
        Seat { together: AtomicUsize::new(0), since: AtomicU64::new(FREE), connections: AtomicUsize::new(0) }
    }
}

impl Seat {
    /// Makes this the seat of the thread.
    pub fn install(self: &Arc<Seat>) {
        SEAT.set(Some(self.clone()));
    }

    /// Gives it a connection.
    #[must_use]
    pub fn occupy(self: &Arc<Seat>) -> Occupied {
        self.connections.fetch_add(1, Relaxed);
        Occupied(self.clone())
    }

    /// Connections it has.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Says how many of them use the only export that any of them uses.
    pub fn set_together(&self, connections: usize) {
        self.together.store(connections, Relaxed);
    }

    /// Whether all who wait for the thread wait for the same file: one who has not chosen, or has not even
    /// been seen by the thread, does not.
    fn may_block(&self) -> bool {
        let connections = self.connections();
        connections > 0 && self.together.load(Relaxed) == connections
    }

    /// Whether the thread waits for a disk. Others see it a little later than it is so.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        let since = self.since.load(Relaxed);
        since != FREE && START.elapsed() > Duration::from_micros(since) + STUCK_AFTER
    }

    /// Runs what may block; tells how long it took.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        let begun = START.elapsed();
        self.since.store(u64::try_from(begun.as_micros()).unwrap_or(FREE), Relaxed);
        let done = work();
        self.since.store(FREE, Relaxed);
        (done, START.elapsed().saturating_sub(begun))
    }
}

/// The seat of this thread, if it may block now.
#[must_use]
pub fn take() -> Option<Arc<Seat>> {
    SEAT.with_borrow(|seat| seat.clone().filter(|seat| seat.may_block()))
}
