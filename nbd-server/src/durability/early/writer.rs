//! Empties the cache of `early-ack` in the background.
//!
//! Many small writes go below as one, in the order of their places: handing each to the disk by
//! itself would cost more than the early acknowledgement saves.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use futures::stream::{FuturesUnordered, StreamExt};

use super::{Early, State};
use crate::device::{Clock, Device, Piece};

/// Batches on their way at a time: enough to keep a disk busy, few enough to merge behind them.
const BATCHES_MAX: usize = 4;
/// Pieces of a batch: the cost of handing it over is then a small part of each.
const PIECES_MAX: usize = 64;
/// Bytes after which a batch is full: some 10 ms for a slow disk.
const BYTES_MAX: usize = 1 << 20;

/// Writes back what is due, for as long as the export lives.
pub(super) async fn run(early: &Early, below: &dyn Device, clock: Rc<dyn Clock>) {
    let mut batches = FuturesUnordered::new();
    let mut timer = None;
    poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some((places, result))) = batches.poll_next_unpin(cx) {
                settle(early, places, result);
            }
            let mut state = early.lock();
            state.writer = Some(cx.waker().clone());
            if early.syncs.poll_well(cx).is_pending() {
                // What could not be stored stays in the cache, where reads see it.
                return Poll::<()>::Pending;
            }
            if batches.len() < BATCHES_MAX
                && let Some(pieces) = batch(&mut state)
            {
                drop(state);
                batches.push(async move {
                    let places: Vec<u64> = pieces.iter().map(|piece| piece.at).collect();
                    (places, below.write_many(pieces).await)
                });
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

/// What shall leave next.
fn batch(state: &mut State) -> Option<Vec<Piece>> {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    while pieces.len() < PIECES_MAX && bytes < BYTES_MAX {
        let Some(piece) = state.cache.leave() else { break };
        bytes += piece.len();
        pieces.push(piece);
    }
    pieces.sort_unstable_by_key(|piece| piece.at);
    (!pieces.is_empty()).then_some(pieces)
}

fn settle(early: &Early, places: Vec<u64>, result: io::Result<()>) {
    let mut state = early.lock();
    match result {
        Ok(()) => {
            places.into_iter().for_each(|at| state.cache.arrived(at));
            state.wake_waiting();
        }
        Err(error) => {
            places.into_iter().for_each(|at| state.cache.came_back(at));
            drop(state);
            early.lost(&error);
        }
    }
}
