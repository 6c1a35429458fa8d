//! The durability contract, held against the real session and layers on a simulated disk.
//!
//! Proves: what each mode makes stable before it answers; that a FLUSH never joins a sync that
//! was already running, and shares the next; that one failed sync poisons every connection for
//! good; that a success is checked against poison before it is told.

use common::command::Fua;
use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::Mode;

use crate::client::Client;
use crate::disk::{Fault, Op};
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
            let mut world = World::on(world.disk.clone(), mode);
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
fn a_flush_never_joins_a_running_sync_and_shares_the_next() {
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
    client.flush();
    world.settle();
    assert_eq!(world.disk.syncs(), 1, "a FUA write needs no FLUSH");
    client.write(0, 512, 1, NONE);
    world.settle();
    client.flush();
    world.settle();
    assert_eq!(world.disk.syncs(), 2);
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
        world.disk.fail(|op| matches!(op, Op::Sync | Op::Write(_, _, Fua::Yes)), EIO);
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

#[test]
fn a_sync_that_succeeds_beside_one_that_failed_is_no_success() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(|op| matches!(op, Op::Sync | Op::Write(_, _, Fua::Yes)));
    let durable = client.write(0, 512, 1, CommandFlags::FUA);
    let flush = client.flush();
    world.settle();
    assert_eq!(world.disk.held(), [Op::Write(0, 512, Fua::Yes), Op::Sync]);

    // The FLUSH fails and consumes the kernel's only report of the lost page; the FUA write's own
    // sync then finds nothing wrong.
    world.disk.fail(is_sync, EIO);
    world.disk.release(1);
    world.settle();
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies(), [(flush, WireError::EIO), (durable, WireError::EIO)]);
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
