//! The cache against a plain array, and the promises that replaced writes leave behind.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize),
    Take,
    Complete,
    Restore,
    Expedite,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..60, 1_usize..20).prop_map(|(at, len)| Step::Write(at, len)),
        2 => Just(Step::Take),
        2 => Just(Step::Complete),
        1 => Just(Step::Restore),
        1 => Just(Step::Expedite),
    ]
}

proptest! {
    /// Against a plain array: reads always see the newest bytes, what is written lands in order,
    /// a number that is no longer held has landed, and memory is given back.
    #[test]
    fn the_cache_is_an_array(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut newest, mut below) = ([0_u8; 80], [0_u8; 80]);
        let mut cache = WriteCache::default();
        let mut in_flight: Vec<Piece> = Vec::new();
        for (number, step) in (1_u8..).zip(steps) {
            match step {
                Step::Write(at, len) => {
                    cache.insert(at, IoBuf::from(&vec![number; len][..]));
                    let at = usize::try_from(at).unwrap();
                    newest[at..at + len].fill(number);
                }
                Step::Expedite => _ = cache.expedite(cache.last()),
                Step::Take if in_flight.is_empty() => in_flight = cache.take_batch(),
                Step::Complete => {
                    store(&mut below, std::mem::take(&mut in_flight));
                    drop(cache.complete());
                }
                Step::Restore => {
                    in_flight.clear();
                    cache.restore();
                }
                Step::Take => {}
            }
            let mut seen = below;
            cache.overlay(&(0..80)).apply(0, &mut seen);
            prop_assert_eq!(&seen[..], &newest[..]);
        }
        store(&mut below, in_flight);
        drop(cache.complete());
        cache.expedite(cache.last());
        store(&mut below, cache.take_batch());
        drop(cache.complete());
        prop_assert_eq!(&below[..], &newest[..]);
        prop_assert!(cache.is_empty() && !cache.is_pending(u64::MAX));
        prop_assert_eq!(cache.memory_bytes(), 0);
    }
}

/// What a disk does with pieces that do not overlap.
fn store(below: &mut [u8], pieces: Vec<Piece>) {
    for piece in pieces {
        let at = usize::try_from(piece.at).unwrap();
        below[at..at + piece.len()].copy_from_slice(&piece.gather());
    }
}

#[test]
fn a_replaced_write_leaves_its_promise_behind() {
    let mut cache = WriteCache::default();
    let first = cache.insert(0, IoBuf::from(&b"old"[..]));
    cache.insert(0, IoBuf::from(&b"new"[..]));
    assert!(cache.is_pending(first), "a FLUSH that covers the first must wait for the second");
    cache.expedite(first);
    let due_for_the_promise_it_carries = cache.take_batch();
    assert_eq!(&due_for_the_promise_it_carries[0].gather()[..], b"new");
    assert!(cache.is_pending(first));
    drop(cache.complete());
    assert!(!cache.is_pending(first));
}

#[test]
fn neighbours_are_written_together() {
    let mut cache = WriteCache::default();
    for at in [0, 8, 4, 20] {
        cache.insert(at, IoBuf::from(&[1; 4][..]));
    }
    cache.expedite(1);
    let due = cache.take_batch();
    assert_eq!(due.iter().map(|piece| (piece.at, piece.len())).collect::<Vec<_>>(), [(0, 12)]);
    drop(cache.complete());
    assert!(cache.take_batch().is_empty(), "what is not due stays");
}

#[test]
fn what_is_longer_than_a_batch_is_written_alone() {
    let mut cache = WriteCache::default();
    let long = usize::try_from(BYTES_MAX).unwrap() + 1;
    cache.insert(0, IoBuf::zeroed(long));
    cache.insert(long as u64, IoBuf::zeroed(4));
    cache.expedite(1);
    assert_eq!(cache.take_batch().iter().map(Piece::len).collect::<Vec<_>>(), [long]);
}

#[test]
fn small_payloads_do_not_hold_their_pages() {
    let mut cache = WriteCache::default();
    for at in 0..1000 {
        cache.insert(at * 4096, IoBuf::from(&[1][..]));
    }
    assert_eq!((cache.payload_bytes(), cache.memory_bytes()), (1000, 1000 * (OVERHEAD + 1)));
    cache.insert(0, IoBuf::zeroed(4096));
    assert_eq!(cache.memory_bytes(), 999 * (OVERHEAD + 1) + OVERHEAD + 4096);
}
