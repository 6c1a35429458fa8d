//! The durability contract, held against the real session and layers on a simulated disk.
//!
//! Proves: what each mode makes stable before it answers; that a FLUSH never joins a sync that
//! was already running, and shares the next; that one failed sync poisons every connection for
//! good; that a success is checked against poison before it is told.

use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::Mode;

use crate::client::Client;
use crate::disk::{Fault, Op, SYNCS};
use crate::world::World;

const NONE: CommandFlags = CommandFlags::NONE;
const EIO: Fault = Fault::Errno(5);

fn is_sync(op: &Op) -> bool {
    *op == Op::Sync
}

#[test]
fn each_mode_makes_stable_what_it_must_before_it_answers() {
    for (mode, plain, flushed, fua) in
        [(Mode::Writethrough, 1, 1, 1), (Mode::Writeback, 0, 1, 1), (Mode::Unsafe, 0, 0, 0)]
    {
        let mut world = World::new(mode);
        let mut client = world.connect();
        client.write(0, 512, 1, NONE);
        world.settle();
        assert_eq!((world.disk.byte(0), client.replies().len()), ((1, plain), 1), "{mode:?} plain");
        client.flush();
        world.settle();
        assert_eq!((world.disk.byte(0), client.replies().len()), ((1, flushed), 1), "{mode:?} FLUSH");
        client.write(512, 512, 1, CommandFlags::FUA);
        world.settle();
        assert_eq!((world.disk.byte(512), client.replies().len()), ((1, fua), 1), "{mode:?} FUA");
    }
}

#[test]
fn zeroes_and_trims_obey_fua_and_flush() {
    for (mode, stable) in [(Mode::Writethrough, 0), (Mode::Writeback, 0), (Mode::Unsafe, 7)] {
        for command in [CommandType::WRITE_ZEROES, CommandType::TRIM] {
            let mut world = World::new(Mode::Writeback);
            let mut client = world.connect();
            client.write(0, 1024, 7, CommandFlags::FUA);
            world.settle();
            // The same disk, now in the mode under test.
            let mut world = World::on(&world.disk, mode);
            let mut client = world.connect();
            client.ask(command, 0, 512, CommandFlags::FUA);
            world.settle();
            assert_eq!(world.disk.byte(0), (0, stable), "{mode:?} {command:?}+FUA");
            client.ask(command, 512, 512, NONE);
            client.flush();
            world.settle();
            assert_eq!(world.disk.byte(512), (0, stable), "{mode:?} {command:?}, FLUSH");
            assert_eq!(client.replies().len(), 3);
        }
    }
}

#[test]
fn a_flush_covers_writes_of_every_connection() {
    let mut world = World::new(Mode::Writeback);
    let (mut one, mut other) = (world.connect(), world.connect());
    one.write(0, 512, 1, NONE);
    world.settle();
    other.flush();
    world.settle();
    assert_eq!(world.disk.byte(0), (1, 1));
}

#[test]
fn flushes_share_the_next_sync_that_covers_what_they_promise() {
    let mut world = World::new(Mode::Writeback);
    let (mut one, mut other) = (world.connect(), world.connect());
    world.disk.hold(is_sync);
    one.write(0, 512, 1, NONE);
    let first = one.flush();
    world.settle();
    assert_eq!(world.disk.held(), [Op::Sync]);

    // Sixteen more arrive while it runs, on two connections, each with something new to cover.
    for n in 0..8 {
        one.write(1024 + 512 * n, 512, 2, NONE);
        other.write(32768 + 512 * n, 512, 2, NONE);
        one.flush();
        other.flush();
    }
    world.settle();
    let answered = |client: &mut Client| client.replies().into_iter().map(|(cookie, _)| cookie).collect();
    let (writes_one, writes_other): (Vec<u64>, Vec<u64>) = (answered(&mut one), answered(&mut other));
    assert_eq!((writes_one.len(), writes_other.len()), (9, 8), "only writes are answered so far");

    world.disk.release(0);
    world.settle();
    assert_eq!(one.replies(), [(first, WireError::OK)], "the first sync answers only the first FLUSH");
    assert!(other.replies().is_empty());
    assert_eq!(world.disk.held(), [Op::Sync], "one more sync serves the other sixteen");

    world.disk.release(0);
    world.settle();
    assert_eq!((one.replies().len(), other.replies().len(), world.disk.syncs()), (8, 8, 2));
    assert_eq!(world.disk.byte(1024), (2, 2));
}

#[test]
fn nothing_written_means_nothing_to_sync_except_the_first_time() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    for _ in 0..3 {
        client.flush();
        world.settle();
    }
    // A server that was killed may have left its acknowledged writes in the page cache.
    assert_eq!((client.replies().len(), world.disk.syncs()), (3, 1));
    client.write(0, 512, 1, CommandFlags::FUA);
    world.settle();
    client.flush();
    world.settle();
    assert_eq!(world.disk.syncs(), 2, "a FUA write needs no FLUSH");
    client.write(0, 512, 1, NONE);
    world.settle();
    client.flush();
    world.settle();
    assert_eq!(world.disk.syncs(), 3);
}

#[test]
fn one_failed_sync_poisons_every_connection_for_good() {
    let planted: [fn(&mut Client) -> u64; 3] = [
        |client| client.flush(),
        |client| client.write(0, 512, 1, CommandFlags::FUA),
        |client| client.ask(CommandType::TRIM, 0, 512, CommandFlags::FUA),
    ];
    for (number, ask) in planted.into_iter().enumerate() {
        let mut world = World::new(Mode::Writeback);
        let (mut same, mut other) = (world.connect(), world.connect());
        world.disk.fail(is_sync, EIO);
        let failed = ask(&mut same);
        world.settle();
        assert_eq!(same.replies(), [(failed, WireError::EIO)], "case {number}");

        world.disk.heal();
        let mut new = world.connect();
        for client in [&mut same, &mut other, &mut new] {
            client.flush();
            client.write(0, 512, 2, NONE);
            client.write(0, 512, 2, CommandFlags::FUA);
            client.ask(CommandType::TRIM, 0, 512, NONE);
            client.ask(CommandType::WRITE_ZEROES, 0, 512, NONE);
            world.settle();
            let answers: Vec<WireError> = client.replies().into_iter().map(|(_, error)| error).collect();
            assert_eq!(answers, [WireError::EIO; 5], "case {number}");
            client.ask(CommandType::READ, 0, 512, NONE);
            world.settle();
            assert!(client.data(512).expect("an answer").1.is_ok(), "what is there can still be read");
        }
    }
}

/// The kernel fails to write a durable write back, and tells the record's sync before that of the data.
fn answer_beside_a_record(mut world: World) -> WireError {
    let (mut one, mut other) = (world.connect(), world.connect());
    world.disk.hold(|op| matches!(op, Op::Sync | Op::Persist));
    world.disk.split();
    let durable = one.write(0, 512, 1, CommandFlags::FUA);
    world.settle();
    assert_eq!(world.disk.held(), [Op::Sync]);
    assert!(world.disk.write_back(0, Some(EIO)), "it was in the page cache");
    other.write(4096, 512, 2, NONE);
    world.settle();
    assert_eq!(world.disk.held(), [Op::Sync, Op::Persist], "it must be on record first");
    world.disk.release(1);
    world.settle();
    world.disk.release(0);
    world.settle();
    // The kernel has answered both, and the server hears of the data's sync first.
    assert_eq!(world.disk.held(), [Op::Deliver, Op::Deliver]);
    world.disk.release(1);
    world.settle();
    // A failure is told once the new epoch is stored.
    world.disk.hold(|_| false);
    world.disk.release(0);
    world.settle();
    let answers = one.replies();
    assert_eq!((answers.len(), answers[0].0), (1, durable));
    answers[0].1
}

#[test]
fn the_sync_of_a_record_does_not_take_an_error_away_from_that_of_the_data() {
    for mode in [Mode::Writeback, Mode::EarlyAck] {
        assert_eq!(answer_beside_a_record(World::after_a_clean_end(mode)), WireError::EIO, "{mode:?}");
        // With one description for both, it does: the simulation can tell.
        let shared = World::sharing_a_description(mode);
        assert_eq!(answer_beside_a_record(shared), WireError::OK, "{mode:?}");
    }
}

#[test]
fn durable_writes_in_flight_share_syncs() {
    for mode in [Mode::Writethrough, Mode::Writeback, Mode::EarlyAck] {
        let mut world = World::new(mode);
        let mut client = world.connect();
        world.disk.hold(is_sync);
        let flags = if mode == Mode::Writethrough { NONE } else { CommandFlags::FUA };
        let first: Vec<u64> = (0..SYNCS as u64).map(|n| client.write(n * 512, 512, 1, flags)).collect();
        world.settle();
        let others: Vec<u64> = (1..=8).map(|n| client.write(n * 4096, 512, 2, flags)).collect();
        world.settle();
        assert_eq!(world.disk.held(), [Op::Sync; SYNCS], "{mode:?}: as many as may run at once");
        for cookie in first {
            world.disk.release(0);
            world.settle();
            assert_eq!(client.replies(), [(cookie, WireError::OK)], "{mode:?}");
        }
        assert_eq!(world.disk.held(), [Op::Sync], "{mode:?}: the others share one");
        world.disk.release(0);
        world.settle();
        let expected: Vec<_> = others.into_iter().map(|cookie| (cookie, WireError::OK)).collect();
        let mut replies = client.replies();
        replies.sort_by_key(|(cookie, _)| *cookie);
        assert_eq!((replies, world.disk.byte(4096)), (expected, (2, 2)), "{mode:?}");
    }
}

#[test]
fn a_request_that_was_received_before_a_loss_fails_after_the_poison_is_cleared() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    client.write(0, 512, 1, NONE);
    world.settle();
    client.replies();
    world.disk.hold(|op| matches!(op, Op::Sync | Op::Write(..)));
    let first = client.flush();
    let second = client.flush();
    let plain = client.write(4096, 512, 1, NONE);
    world.settle();
    assert_eq!(world.disk.held(), [Op::Sync, Op::Write(4096, 512)]);
    // The sync fails, and the operator clears the poison before the write is answered.
    world.disk.release_with(0, Some(EIO));
    world.settle();
    world.disk.hold(|_| false);
    let mut cleared = world.clear_poison();
    world.settle();
    assert_eq!(cleared.try_recv(), Ok(Some(true)));
    assert_eq!(world.disk.held(), [Op::Write(4096, 512)]);
    world.disk.release(0);
    world.settle();
    let expected = [first, second, plain].map(|cookie| (cookie, WireError::EIO));
    assert_eq!(client.replies(), expected, "it may be among what was lost");
    let flush = client.flush();
    world.settle();
    assert_eq!(client.replies(), [(flush, WireError::OK)]);
}

#[test]
fn a_flush_that_waited_while_a_loss_came_and_was_cleared_fails() {
    let mut world = World::new(Mode::Writeback);
    let (mut old, mut beside) = (world.connect(), world.connect());
    beside.write(4096, 512, 1, NONE);
    world.disk.hold(|op| matches!(op, Op::Write(0, 512)));
    old.write(0, 512, 1, NONE);
    world.settle();
    old.vanish();
    world.settle();
    let mut new = world.connect();
    let waits = new.flush();
    world.settle();
    assert_eq!(new.replies(), [], "what the old connection left under way comes first");
    world.disk.fail(is_sync, EIO);
    beside.flush();
    world.settle();
    world.disk.heal();
    let mut cleared = world.clear_poison();
    world.settle();
    assert_eq!(cleared.try_recv(), Ok(Some(true)));
    world.disk.release(0);
    world.settle();
    assert_eq!(new.replies(), [(waits, WireError::EIO)], "what was lost had been written before it");
}

#[test]
fn a_durable_write_that_fails_makes_nothing_else_durable() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    client.write(0, 512, 1, NONE);
    world.settle();
    world.disk.fail(|op| matches!(op, Op::Write(..)), Fault::Errno(28));
    let full = client.write(4096, 512, 2, CommandFlags::FUA);
    world.settle();
    world.disk.heal();
    let flush = client.flush();
    world.settle();
    let expected = [WireError::OK, WireError::ENOSPC, WireError::OK];
    assert_eq!(client.replies().into_iter().map(|(_, error)| error).collect::<Vec<_>>(), expected);
    assert!(full < flush);
    assert_eq!((world.disk.byte(0), world.disk.syncs()), ((1, 1), 1));
}

#[test]
fn a_new_connection_waits_for_what_an_ended_one_left_under_way() {
    for command in [CommandType::READ, CommandType::FLUSH, CommandType::WRITE] {
        let mut world = World::new(Mode::Writeback);
        let (mut old, mut beside) = (world.connect(), world.connect());
        world.disk.hold(|op| matches!(op, Op::Write(0, 512)));
        old.write(0, 512, 1, NONE);
        world.settle();
        old.vanish();
        world.settle();
        let mut new = world.connect();
        let asked = match command {
            CommandType::READ => new.ask(command, 4096, 512, NONE),
            CommandType::FLUSH => new.flush(),
            _ => new.write(8192, 512, 2, NONE),
        };
        let also = beside.flush();
        world.settle();
        assert_eq!(new.replies(), [], "{command:?}: not before the write has taken effect");
        assert_eq!(beside.replies(), [(also, WireError::OK)], "{command:?}: others do not wait");
        world.disk.release(0);
        world.settle();
        match command {
            CommandType::READ => assert!(new.data(512).expect("an answer").1.is_ok()),
            _ => assert_eq!(new.replies(), [(asked, WireError::OK)], "{command:?}"),
        }
    }
}

#[test]
fn an_error_of_a_plain_write_is_its_own_and_poisons_nothing() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.fail(|op| matches!(op, Op::Write(..)), Fault::Errno(28));
    let full = client.write(0, 512, 1, NONE);
    world.settle();
    world.disk.heal();
    let flush = client.flush();
    world.settle();
    assert_eq!(client.replies(), [(full, WireError::ENOSPC), (flush, WireError::OK)]);
}
