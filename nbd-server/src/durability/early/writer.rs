//! Empties the cache of `early-ack` in the background.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use common::command::Fua;
use futures::stream::{FuturesUnordered, StreamExt};

use super::Early;
use super::cache::Write;
use crate::device::{Clock, Device};

/// Writes on their way at a time: enough to keep a disk busy, few enough to merge behind them.
const WRITES_MAX: usize = 16;

/// Writes back what is due, for as long as the export lives.
pub(super) async fn run(early: &Early, below: &dyn Device, clock: Rc<dyn Clock>) {
    let mut writes = FuturesUnordered::new();
    let mut timer = None;
    poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some((id, result))) = writes.poll_next_unpin(cx) {
                settle(early, id, result);
            }
            let mut state = early.lock();
            state.writer = Some(cx.waker().clone());
            if early.syncs.poll_well(cx).is_pending() {
                // What could not be stored stays in the cache, where reads see it.
                return Poll::<()>::Pending;
            }
            if writes.len() < WRITES_MAX
                && let Some(Write { id, at, data }) = state.cache.leave()
            {
                drop(state);
                writes.push(async move { (id, below.write(at, data, Fua::No).await) });
                continue;
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
            timer = None;
        }
    })
    .await;
}

fn settle(early: &Early, id: u64, result: io::Result<()>) {
    match result {
        Ok(()) => {
            let mut state = early.lock();
            state.cache.arrived(id);
            state.wake_waiting();
        }
        Err(error) => {
            early.lock().cache.came_back(id);
            early.lost(&error);
        }
    }
}
