//! Requests and replies, held against the real session on a simulated disk.
//!
//! Proves: many requests run at once and are answered in whatever order they end; overlapping
//! writes keep their order of receipt even when a connection dies; what was received whole is
//! finished and what was not has no effect; a stop answers what was received.

use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::Mode;
use nbd_server::session::{End, REQUESTS_MAX, Stop};

use crate::disk::{Fault, Op};
use crate::world::World;

const NONE: CommandFlags = CommandFlags::NONE;

fn is_write(op: &Op) -> bool {
    matches!(op, Op::Write(..))
}

#[test]
fn sixty_four_requests_in_flight_are_answered_in_the_order_they_end() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(|op| matches!(op, Op::Read(..)));
    let asked: Vec<u64> = (0..64).map(|n| client.ask(CommandType::READ, n * 512, 512, NONE)).collect();
    world.settle();
    assert_eq!(world.disk.held().len(), 64, "all of them run at once");

    // An arbitrary fixed order: every seventh, over and over.
    let mut waiting = asked.clone();
    let mut place = 0;
    while !waiting.is_empty() {
        place = (place + 7) % waiting.len();
        world.disk.release(place);
        world.settle();
        let (cookie, data) = client.data(512).expect("the released one is answered");
        assert_eq!((cookie, data.is_ok()), (waiting.remove(place), true));
    }
}

#[test]
fn no_more_requests_are_taken_than_the_limit() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(is_write);
    let many = u64::try_from(REQUESTS_MAX).expect("a small number") + 50;
    for n in 0..many {
        client.write(n % 128 * 512, 1, 1, NONE);
    }
    world.settle();
    let log = world.disk.log().len();
    assert!(log <= REQUESTS_MAX, "{log} requests run");
    let mut answered = 0;
    while answered < many {
        world.disk.release(0);
        world.settle();
        answered += client.replies().len() as u64;
    }
    assert_eq!(answered, many);
}

#[test]
fn a_stalled_write_of_a_dead_connection_never_lands_on_newer_data() {
    let mut world = World::new(Mode::Writeback);
    world.disk.hold(is_write);
    let (mut old, mut other) = (world.connect(), world.connect());
    old.write(0, 4096, b'A', NONE);
    world.settle();
    assert_eq!(world.disk.held().len(), 1);
    old.vanish();
    world.settle();

    // The client resends A on another of its connections, then writes B.
    let resent = other.write(0, 4096, b'A', NONE);
    let newer = other.write(0, 4096, b'B', CommandFlags::FUA);
    let elsewhere = other.write(8192, 4096, b'C', NONE);
    world.settle();
    assert_eq!(world.disk.held().len(), 2, "only what overlaps nothing has begun");
    assert_eq!(world.disk.release(1), Op::Write(8192, 4096));
    world.settle();
    assert_eq!(other.replies(), [(elsewhere, WireError::OK)]);

    for _ in 0..3 {
        world.disk.release(0);
        world.settle();
    }
    assert_eq!(other.replies(), [(resent, WireError::OK), (newer, WireError::OK)]);
    assert_eq!(world.disk.byte(0), (b'B', b'B'));
}

#[test]
fn a_request_that_was_received_whole_runs_even_if_its_client_is_gone() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(is_write);
    client.write(0, 512, 1, NONE);
    world.settle();
    client.vanish();
    world.settle();
    assert!(client.end().is_none(), "the session waits for its request");
    world.disk.release(0);
    world.settle();
    assert_eq!(world.disk.byte(0).0, 1);
    assert!(matches!(client.end(), Some(End::Disconnected | End::Broken(_))));
}

#[test]
fn a_write_that_was_not_received_whole_has_no_effect() {
    // A short payload is received with its header, the rest of a long one by itself.
    for len in [4096, 48 << 10] {
        let mut world = World::new(Mode::Writeback);
        let mut client = world.connect();
        client.ask(CommandType::WRITE, 0, len, NONE);
        client.send(&vec![1; len as usize / 8]);
        world.settle();
        client.vanish();
        world.settle();
        assert!(world.disk.log().is_empty(), "{len} bytes");
        assert!(matches!(client.end(), Some(End::Broken(_))));
    }
}

#[test]
fn a_client_that_only_closes_its_sending_side_gets_its_replies() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(is_write);
    let cookie = client.write(0, 512, 1, NONE);
    client.close();
    world.settle();
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies(), [(cookie, WireError::OK)]);
    assert!(matches!(client.end(), Some(End::Disconnected)));
}

#[test]
fn a_stop_answers_what_was_received_and_takes_no_more() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(is_write);
    let cookie = client.write(0, 512, 1, NONE);
    world.settle();
    client.stop(Stop::Gently);
    world.settle();
    client.write(512, 512, 1, NONE);
    world.settle();
    assert!(client.end().is_none());
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies(), [(cookie, WireError::OK)]);
    assert!(matches!(client.end(), Some(End::Stopped)));
    assert_eq!(world.disk.log().len(), 1);
}

#[test]
fn a_stop_that_is_gentle_at_first_may_be_in_a_hurry_later() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(is_write);
    client.write(0, 512, 1, NONE);
    world.settle();
    client.stop(Stop::Gently);
    world.settle();
    client.stop(Stop::AtOnce);
    world.settle();
    assert!(client.end().is_none(), "what was received is finished");
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies(), [], "and answered no more");
    assert!(matches!(client.end(), Some(End::Stopped)));
    assert_eq!(world.disk.log().len(), 1);
}

#[test]
fn refusals_are_answered_and_leave_the_stream_in_step() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    let beyond = client.write(64 << 10, 512, 9, NONE);
    let unknown = client.ask(CommandType(77), 0, 0, NONE);
    let flagged = client.write(0, 512, 9, CommandFlags::DF);
    let empty = client.write(0, 0, 9, NONE);
    let good = client.write(0, 512, 3, NONE);
    world.settle();
    assert_eq!(
        client.replies(),
        [
            (beyond, WireError::ENOSPC),
            (unknown, WireError::EINVAL),
            (flagged, WireError::EINVAL),
            (empty, WireError::OK),
            (good, WireError::OK),
        ]
    );
    assert_eq!(world.disk.byte(0).0, 3);
}

#[test]
fn a_wrong_magic_ends_the_connection_after_what_came_before() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    client.write(0, 512, 3, NONE);
    client.send(&[0; 28]);
    world.settle();
    assert!(matches!(client.end(), Some(End::Violation(_))));
    assert_eq!(world.disk.byte(0).0, 3);
}

#[test]
fn a_read_error_is_an_answer_on_a_living_connection() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.fail(|op| matches!(op, Op::Read(..)), Fault::Errno(5));
    let cookie = client.ask(CommandType::READ, 0, 512, NONE);
    world.settle();
    assert_eq!(client.data(512), Some((cookie, Err(WireError::EIO))));
    world.disk.heal();
    let cookie = client.ask(CommandType::READ, 0, 512, NONE);
    world.settle();
    assert_eq!(client.data(512), Some((cookie, Ok(vec![0; 512]))));
}

#[test]
fn a_bug_in_a_backend_is_an_answer_too() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.fail(is_write, Fault::Panic);
    let broken = client.write(0, 512, 1, NONE);
    world.settle();
    world.disk.heal();
    let good = client.write(0, 512, 1, NONE);
    world.settle();
    assert_eq!(client.replies(), [(broken, WireError::EIO), (good, WireError::OK)]);
}
