//! Overlapping writes take effect in the order in which they were received, on all connections.
//!
//! The kernel resends a request on a new connection when the old one stalls. Were the stalled
//! write of the dead connection to land later, it would overwrite newer, acknowledged data. Here
//! it keeps its place in line: whatever overlaps it and was received later waits for it.

use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use common::command::{Fua, Zeroing};

use crate::buf::IoBuf;
use crate::device::{Device, Io, Layer, Loan};

/// The line of write-class requests of one export.
#[derive(Default)]
pub struct Order {
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    next: u64,
    /// In the order of receipt.
    places: Vec<Place>,
}

struct Place {
    ticket: u64,
    start: u64,
    end: u64,
    waker: Option<Waker>,
}

impl Place {
    fn overlaps(&self, other: &Place) -> bool {
        self.start < other.end && other.start < self.end
    }
}

impl Order {
    /// Takes a place in line, at once: the call is the receipt.
    fn stand(&self, at: u64, len: u64) -> Ticket<'_> {
        let mut line = self.lock();
        let ticket = line.next;
        line.next += 1;
        line.places.push(Place { ticket, start: at, end: at + len, waker: None });
        Ticket { order: self, ticket }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `write` when everything before `ticket` that overlaps it has ended.
    fn in_turn<'a>(ticket: Ticket<'a>, write: Io<'a, ()>) -> Io<'a, ()> {
        Box::pin(async move {
            ticket.turn().await;
            let done: io::Result<()> = write.await;
            drop(ticket);
            done
        })
    }
}

/// A place in line, given up when dropped.
struct Ticket<'a> {
    order: &'a Order,
    ticket: u64,
}

impl Ticket<'_> {
    async fn turn(&self) {
        poll_fn(|cx| self.poll_turn(cx)).await;
    }

    fn poll_turn(&self, cx: &Context<'_>) -> Poll<()> {
        let mut line = self.order.lock();
        let Some(mine) = line.places.iter().position(|place| place.ticket == self.ticket) else {
            return Poll::Ready(());
        };
        let (before, rest) = line.places.split_at_mut(mine);
        if before.iter().any(|earlier| earlier.overlaps(&rest[0])) {
            rest[0].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut line = self.order.lock();
        let Some(mine) = line.places.iter().position(|place| place.ticket == self.ticket) else { return };
        let gone = line.places.remove(mine);
        let behind = line.places[mine..].iter_mut().filter(|place| place.overlaps(&gone));
        let wakers: Vec<Waker> = behind.filter_map(|place| place.waker.take()).collect();
        drop(line);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Layer for Order {
    fn write<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, fua: Fua) -> Io<'a, ()> {
        let ticket = self.stand(at, data.len() as u64);
        Order::in_turn(ticket, below.write(at, data, fua))
    }

    fn zero<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, how: Zeroing, fua: Fua) -> Io<'a, ()> {
        let ticket = self.stand(at, len);
        Order::in_turn(ticket, below.zero(at, len, how, fua))
    }

    fn trim<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, fua: Fua) -> Io<'a, ()> {
        let ticket = self.stand(at, len);
        Order::in_turn(ticket, below.trim(at, len, fua))
    }

    fn lend(&self, below: &dyn Device, at: u64, len: usize) -> Option<Loan> {
        below.lend(at, len)
    }
}
