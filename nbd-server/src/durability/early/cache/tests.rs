//! The cache against a plain array, and the promises that replaced writes leave behind.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize),
    Leave,
    Arrive,
    ComeBack,
    Expedite,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..60, 1_usize..20).prop_map(|(at, len)| Step::Write(at, len)),
        2 => Just(Step::Leave),
        2 => Just(Step::Arrive),
        1 => Just(Step::ComeBack),
        1 => Just(Step::Expedite),
    ]
}

proptest! {
    /// Against a plain array: reads always see the newest bytes, what leaves lands in order,
    /// a number that is no longer held has landed, and memory is given back.
    #[test]
    fn the_cache_is_an_array(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut newest, mut below) = ([0_u8; 80], [0_u8; 80]);
        let mut cache = Cache::default();
        let mut leaving: Vec<Piece> = Vec::new();
        for (number, step) in (1_u8..).zip(steps) {
            match step {
                Step::Write(at, len) => {
                    cache.insert(at, IoBuf::from(&vec![number; len][..]));
                    let at = usize::try_from(at).unwrap();
                    newest[at..at + len].fill(number);
                }
                Step::Expedite => _ = cache.expedite(cache.last()),
                Step::Leave if leaving.is_empty() => leaving = cache.leave(),
                Step::Arrive => {
                    store(&mut below, std::mem::take(&mut leaving));
                    drop(cache.arrived());
                }
                Step::ComeBack => {
                    leaving.clear();
                    cache.came_back();
                }
                Step::Leave => {}
            }
            let mut seen = below;
            cache.overlay(&(0..80)).apply(0, &mut seen);
            prop_assert_eq!(&seen[..], &newest[..]);
        }
        store(&mut below, leaving);
        drop(cache.arrived());
        cache.expedite(cache.last());
        store(&mut below, cache.leave());
        drop(cache.arrived());
        prop_assert_eq!(&below[..], &newest[..]);
        prop_assert!(cache.is_empty() && !cache.holds_up_to(u64::MAX));
        prop_assert_eq!(cache.held(), 0);
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
    let mut cache = Cache::default();
    let first = cache.insert(0, IoBuf::from(&b"old"[..]));
    cache.insert(0, IoBuf::from(&b"new"[..]));
    assert!(cache.holds_up_to(first), "a FLUSH that covers the first must wait for the second");
    cache.expedite(first);
    let due_for_the_promise_it_carries = cache.leave();
    assert_eq!(&due_for_the_promise_it_carries[0].gather()[..], b"new");
    assert!(cache.holds_up_to(first));
    drop(cache.arrived());
    assert!(!cache.holds_up_to(first));
}

#[test]
fn neighbours_leave_together() {
    let mut cache = Cache::default();
    for at in [0, 8, 4, 20] {
        cache.insert(at, IoBuf::from(&[1; 4][..]));
    }
    cache.expedite(1);
    let due = cache.leave();
    assert_eq!(due.iter().map(|piece| (piece.at, piece.len())).collect::<Vec<_>>(), [(0, 12)]);
    drop(cache.arrived());
    assert!(cache.leave().is_empty(), "what is not due stays");
}

#[test]
fn what_is_longer_than_a_batch_leaves_alone() {
    let mut cache = Cache::default();
    let long = usize::try_from(BYTES_MAX).unwrap() + 1;
    cache.insert(0, IoBuf::zeroed(long));
    cache.insert(long as u64, IoBuf::zeroed(4));
    cache.expedite(1);
    assert_eq!(cache.leave().iter().map(Piece::len).collect::<Vec<_>>(), [long]);
}
