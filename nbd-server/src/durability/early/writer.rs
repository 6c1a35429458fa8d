//! Empties the cache of `early-ack` in the background.
//!
//! Many small writes go below as one, in the order of their places: handing each to the disk by
//! itself would cost more than the early acknowledgement saves. One batch is on its way at a time:
//! buffered writes of one file exclude each other in the kernel, so that a second one would only
//! spin, while what waits behind the first finds neighbours to merge with.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use super::Early;
use crate::device::{Clock, Device, Piece};

/// When writes up to which number are due.
type Timer = Option<(u64, Pin<Box<dyn Future<Output = ()>>>)>;

/// Writes back what is due, for as long as the export lives.
pub(super) async fn run(early: &Early, below: &dyn Device, clock: Rc<dyn Clock>) -> Infallible {
    let mut timer = None;
    loop {
        let pieces = next(early, &*clock, &mut timer).await;
        settle(early, below.write_many(pieces).await);
    }
}

/// Waits until something shall leave.
async fn next(early: &Early, clock: &dyn Clock, timer: &mut Timer) -> Vec<Piece> {
    poll_fn(|cx| {
        loop {
            let mut state = early.lock();
            state.writer = Some(cx.waker().clone());
            if early.syncs.poll_well(cx).is_pending() {
                // What could not be stored stays in the cache, where reads see it.
                return Poll::Pending;
            }
            let pieces = state.cache.leave();
            if !pieces.is_empty() {
                return Poll::Ready(pieces);
            }
            if state.cache.is_empty() {
                return Poll::Pending;
            }
            // Two rounds of half the age: no write stays longer than the whole.
            let number = state.cache.last();
            drop(state);
            let (armed, sleep) =
                timer.get_or_insert_with(|| (number, clock.sleep(early.limits.dirty_age / 2)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            early.lock().cache.expedite(*armed);
            *timer = None;
        }
    })
    .await
}

fn settle(early: &Early, result: io::Result<()>) {
    match result {
        Ok(()) => {
            let arrived = early.lock().cache.arrived();
            // Not while others wait for the cache.
            drop(arrived);
            early.lock().wake_waiting();
        }
        Err(error) => {
            early.lock().cache.came_back();
            early.lost(&error);
        }
    }
}
