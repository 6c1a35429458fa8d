//! The order of requests across the connections of an export.
//!
//! - Overlapping writes take effect in the order in which they were received, on all connections.
//!   The kernel resends a request on a new connection when the old one stalls. Were the stalled write
//!   of the dead connection to take effect later, it would overwrite newer, acknowledged data. Here it
//!   keeps its place in the queue: whatever overlaps it and was received later waits for it.
//! - A new connection sees nothing before the writes that ended connections left under way have taken
//!   effect. Otherwise a client that takes over from another host could read a journal, and a stale
//!   write could change it afterwards.
//!
//! A request is received exactly once, which makes a [`Receipt`].
//! [`Durability`](super::Durability) carries out nothing without one, so that no caller can lose the order
//! by being late.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use super::group_commit::Target;

/// The queue of write-class requests of one export.
#[derive(Default)]
pub(super) struct Ordering {
    queue: Mutex<Queue>,
    /// A write of an ended connection has taken effect.
    landed: Notify,
}

#[derive(Default)]
struct Queue {
    next_number: u64,
    next_client: u64,
    /// In the order of receipt.
    entries: Vec<Entry>,
    /// Entries whose connection has ended.
    orphans: usize,
}

struct Entry {
    number: u64,
    range: Range<u64>,
    client: u64,
    is_orphan: bool,
    waker: Option<Waker>,
}

impl Entry {
    fn overlaps(&self, other: &Entry) -> bool {
        self.range.start < other.range.end && other.range.start < self.range.end
    }
}

impl Ordering {
    /// A new connection.
    pub(super) fn connect(self: &Arc<Ordering>) -> Client {
        let mut queue = self.lock();
        let id = queue.next_client;
        queue.next_client += 1;
        let fence = (queue.orphans > 0).then_some(queue.next_number);
        drop(queue);
        Client { ordering: self.clone(), id, fence: Cell::new(fence) }
    }

    /// Whether no write of an ended connection is under way that was received before number `fence`.
    fn is_past(&self, fence: u64) -> bool {
        let queue = self.lock();
        queue.orphans == 0 || !queue.entries.iter().any(|entry| entry.is_orphan && entry.number < fence)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's share in the order.
pub struct Client {
    ordering: Arc<Ordering>,
    id: u64,
    /// What ended connections left under way before this number takes effect first.
    fence: Cell<Option<u64>>,
}

impl Client {
    /// Receives a write-class request.
    pub(super) fn receive_write(&self, range: Range<u64>) -> Receipt {
        let mut queue = self.ordering.lock();
        let number = queue.next_number;
        queue.next_number += 1;
        queue.entries.push(Entry { number, range, client: self.id, is_orphan: false, waker: None });
        drop(queue);
        let mut receipt = self.receive(Target::default());
        receipt.number = Some(number);
        receipt
    }

    /// Receives a request that changes nothing.
    pub(super) fn receive(&self, target: Target) -> Receipt {
        let fence = self.fence.get().filter(|fence| !self.ordering.is_past(*fence));
        self.fence.set(fence);
        Receipt { ordering: self.ordering.clone(), number: None, fence, target }
    }

    /// The connection has ended; what it left under way goes on.
    pub(super) fn end(&self) {
        let mut queue = self.ordering.lock();
        let left = queue.entries.iter_mut().filter(|entry| entry.client == self.id && !entry.is_orphan);
        let left = left.map(|entry| entry.is_orphan = true).count();
        queue.orphans += left;
    }
}

/// The place of a received request in the order, given up when dropped.
pub struct Receipt {
    ordering: Arc<Ordering>,
    /// Its number in the queue, if it is a write-class request.
    number: Option<u64>,
    fence: Option<u64>,
    /// What a FLUSH must make stable.
    pub(super) target: Target,
}

impl Receipt {
    /// Resolves when everything has taken effect that must before this request.
    pub(super) async fn turn(&self) {
        if self.must_wait() {
            // Boxed, as it is rare and would make every request's future longer.
            Box::pin(self.wait()).await;
        }
    }

    /// Whether something else must take effect before this request.
    pub(super) fn must_wait(&self) -> bool {
        self.fence.is_some() || self.number.is_some_and(|number| self.is_overlapped(number))
    }

    async fn wait(&self) {
        if let Some(fence) = self.fence {
            loop {
                let landed = self.ordering.landed.notified();
                if self.ordering.is_past(fence) {
                    break;
                }
                landed.await;
            }
        }
        if let Some(number) = self.number {
            poll_fn(|cx| self.poll_turn(cx, number)).await;
        }
    }

    /// Whether an earlier write that overlaps it is under way.
    fn is_overlapped(&self, number: u64) -> bool {
        let queue = self.ordering.lock();
        let Some(mine) = queue.entries.iter().position(|entry| entry.number == number) else { return false };
        queue.entries[..mine].iter().any(|earlier| earlier.overlaps(&queue.entries[mine]))
    }

    fn poll_turn(&self, cx: &Context<'_>, number: u64) -> Poll<()> {
        let mut queue = self.ordering.lock();
        let Some(mine) = queue.entries.iter().position(|entry| entry.number == number) else {
            return Poll::Ready(());
        };
        let (before, rest) = queue.entries.split_at_mut(mine);
        if before.iter().any(|earlier| earlier.overlaps(&rest[0])) {
            rest[0].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut queue = self.ordering.lock();
        let Some(mine) = queue.entries.iter().position(|entry| entry.number == number) else { return };
        let gone = queue.entries.remove(mine);
        let behind = queue.entries[mine..].iter_mut().filter(|entry| entry.overlaps(&gone));
        let wakers: Vec<Waker> = behind.filter_map(|entry| entry.waker.take()).collect();
        queue.orphans -= usize::from(gone.is_orphan);
        drop(queue);
        wakers.into_iter().for_each(Waker::wake);
        if gone.is_orphan {
            self.ordering.landed.notify_waiters();
        }
    }
}
