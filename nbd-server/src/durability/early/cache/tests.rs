//! The cache against a plain array, and the promises that replaced writes leave behind.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize),
    Leave,
    Arrive(usize),
    ComeBack(usize),
    Expedite,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..60, 1_usize..20).prop_map(|(at, len)| Step::Write(at, len)),
        2 => Just(Step::Leave),
        2 => (0_usize..4).prop_map(Step::Arrive),
        1 => (0_usize..4).prop_map(Step::ComeBack),
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
                Step::Leave => leaving.extend(cache.leave()),
                Step::Arrive(index) if index < leaving.len() => {
                    let write = leaving.remove(index);
                    let at = usize::try_from(write.at).unwrap();
                    below[at..at + write.len()].copy_from_slice(&write.gather());
                    cache.arrived(write.at);
                }
                Step::ComeBack(index) if index < leaving.len() => {
                    cache.came_back(leaving.remove(index).at);
                }
                Step::Arrive(_) | Step::ComeBack(_) => {}
            }
            let mut seen = below;
            cache.overlay(&(0..80)).apply(0, &mut seen);
            prop_assert_eq!(&seen[..], &newest[..]);
        }
        cache.expedite(cache.last());
        loop {
            leaving.extend(cache.leave());
            let Some(write) = leaving.pop() else { break };
            let at = usize::try_from(write.at).unwrap();
            below[at..at + write.len()].copy_from_slice(&write.gather());
            cache.arrived(write.at);
            drop(write);
        }
        prop_assert_eq!(&below[..], &newest[..]);
        prop_assert!(cache.is_empty() && !cache.holds_up_to(u64::MAX));
        prop_assert_eq!(cache.held(), 0);
    }
}

#[test]
fn a_replaced_write_leaves_its_promise_behind() {
    let mut cache = Cache::default();
    let first = cache.insert(0, IoBuf::from(&b"old"[..]));
    cache.insert(0, IoBuf::from(&b"new"[..]));
    assert!(cache.holds_up_to(first), "a FLUSH that covers the first must wait for the second");
    cache.expedite(first);
    let write = cache.leave().expect("due for the promise it carries");
    assert_eq!(&write.gather()[..], b"new");
    assert!(cache.holds_up_to(first));
    cache.arrived(write.at);
    assert!(!cache.holds_up_to(first));
}

#[test]
fn neighbours_leave_together() {
    let mut cache = Cache::default();
    for at in [8, 0, 4, 20] {
        cache.insert(at, IoBuf::from(&[1; 4][..]));
    }
    cache.expedite(1);
    let write = cache.leave().expect("the first is due");
    assert_eq!((write.at, write.len()), (0, 12));
    assert!(cache.leave().is_none(), "what is not due stays");
}
