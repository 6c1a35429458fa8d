//! `early-ack` on a simulated disk.
//!
//! Proves: what is acknowledged early is seen by every reader, leaves within its age, never
//! exceeds its memory, is made stable by FLUSH and FUA and at the end, lands in order; and that a
//! write that could not be stored is told at the next FLUSH or FUA, while reads still see it.

use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::Mode;
use nbd_server::session::Stop;

use crate::disk::{Fault, Op};
use crate::world::World;

const NONE: CommandFlags = CommandFlags::NONE;

fn is_write(op: &Op) -> bool {
    matches!(op, Op::Write(..))
}

#[test]
fn a_write_is_acknowledged_before_it_is_stored_and_seen_by_everyone() {
    let mut world = World::new(Mode::EarlyAck);
    let (mut writer, mut reader) = (world.connect(), world.connect());
    let cookie = writer.write(100, 512, 7, NONE);
    world.settle();
    assert_eq!(writer.replies(), [(cookie, WireError::OK)]);
    assert_eq!((world.disk.byte(100), world.health().dirty_bytes), ((0, 0), 512));

    reader.ask(CommandType::READ, 0, 1024, NONE);
    world.settle();
    let data = reader.data(1024).expect("an answer").1.expect("success");
    assert_eq!((data[99], data[100], data[611], data[612]), (0, 7, 7, 0));
}

#[test]
fn a_client_that_leaves_leaves_nothing_in_the_cache() {
    for says_so in [true, false] {
        let mut world = World::new(Mode::EarlyAck);
        let mut client = world.connect();
        client.write(0, 512, 7, NONE);
        world.settle();
        assert_eq!(world.disk.byte(0), (0, 0));
        world.disk.hold(is_write);
        match says_so {
            true => _ = client.ask(CommandType::DISC, 0, 0, NONE),
            false => client.vanish(),
        }
        world.settle();
        assert!(client.end().is_none(), "it is not over before the data is out");
        world.disk.release(0);
        world.settle();
        assert!(client.end().is_some());
        assert_eq!((world.disk.byte(0), world.health().dirty_bytes), ((7, 0), 0));
        assert_eq!(world.disk.syncs(), 0, "nobody asked for that");
    }
}

#[test]
fn it_leaves_within_its_age_and_merged() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    for at in [512, 0, 1024] {
        client.write(at, 512, 7, NONE);
    }
    world.settle();
    world.pass_time();
    assert_eq!(world.disk.log(), [Op::Write(0, 1536)]);
    assert_eq!((world.disk.byte(0), world.health().dirty_bytes), ((7, 0), 0));
}

#[test]
fn a_flush_drains_what_was_acknowledged_before_it_and_syncs() {
    let mut world = World::new(Mode::EarlyAck);
    let (mut one, mut other) = (world.connect(), world.connect());
    one.write(0, 512, 1, NONE);
    world.settle();
    world.disk.hold(is_write);
    let flush = other.flush();
    world.settle();
    assert_eq!(world.disk.held().len(), 1);
    // A later write to the same place is no part of the promise, and must not land first.
    let later = one.write(0, 512, 2, NONE);
    world.settle();
    assert_eq!(one.replies().last(), Some(&(later, WireError::OK)));
    world.disk.release(0);
    world.settle();
    assert_eq!(other.replies(), [(flush, WireError::OK)]);
    assert_eq!(world.disk.byte(0), (1, 1));
    world.pass_time();
    world.disk.release(0);
    world.settle();
    assert_eq!(world.disk.byte(0), (2, 1));
}

#[test]
fn fua_trims_and_zeroes_wait_for_what_they_overlap() {
    for command in [CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES] {
        let mut world = World::new(Mode::EarlyAck);
        let mut client = world.connect();
        client.write(0, 1024, 1, NONE);
        client.write(4096, 512, 1, NONE);
        match command {
            CommandType::WRITE => client.write(512, 512, 2, CommandFlags::FUA),
            other => client.ask(other, 512, 512, CommandFlags::FUA),
        };
        world.settle();
        assert_eq!(client.replies().len(), 3, "{command:?}");
        let expected = if command == CommandType::WRITE { 2 } else { 0 };
        assert_eq!(world.disk.byte(512), (expected, expected), "{command:?}");
        assert_eq!(world.disk.log()[0], Op::Write(0, 1024), "{command:?}");
    }
}

#[test]
fn a_full_cache_delays_acknowledgements_and_never_grows() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    world.disk.hold(is_write);
    for n in 0..10 {
        client.write(n * 4096, 2048, 1, NONE);
    }
    world.settle();
    assert_eq!((client.replies().len(), world.health().dirty_bytes), (4, 8192));
    let mut answered = 4;
    while answered < 10 {
        world.disk.release(0);
        world.settle();
        assert!(world.health().dirty_bytes <= 8192);
        answered += client.replies().len();
    }
}

#[test]
fn long_writes_are_not_acknowledged_early() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    world.disk.hold(is_write);
    client.write(0, 4097, 1, NONE);
    world.settle();
    assert!(client.replies().is_empty());
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies().len(), 1);
}

#[test]
fn a_write_that_cannot_be_stored_is_told_at_the_next_flush_and_still_read() {
    for flags in [NONE, CommandFlags::FUA] {
        let mut world = World::new(Mode::EarlyAck);
        let mut client = world.connect();
        let cookie = client.write(0, 512, 7, NONE);
        world.settle();
        assert_eq!(client.replies(), [(cookie, WireError::OK)]);
        world.disk.fail(is_write, Fault::Errno(28));
        world.pass_time();
        world.disk.heal();
        let (mut same, mut new) = (client, world.connect());
        for client in [&mut same, &mut new] {
            let asked = match flags {
                NONE => client.flush(),
                fua => client.write(4096, 512, 1, fua),
            };
            let write = client.write(8192, 512, 1, NONE);
            world.settle();
            assert_eq!(client.replies(), [(asked, WireError::EIO), (write, WireError::EIO)]);
            client.ask(CommandType::READ, 0, 512, NONE);
            world.settle();
            assert_eq!(client.data(512).expect("an answer").1, Ok(vec![7; 512]));
        }
        assert!(world.health().poison.is_some());
        assert!(world.close().expect("it ends").is_err(), "the exit code must say it");
    }
}

#[test]
fn a_flush_that_waits_is_told_of_the_failure() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    client.write(0, 512, 7, NONE);
    world.disk.fail(is_write, Fault::Errno(5));
    let flush = client.flush();
    world.settle();
    assert_eq!(client.replies().last(), Some(&(flush, WireError::EIO)));
}

#[test]
fn nothing_acknowledged_is_lost_when_clients_leave_and_the_server_stops() {
    let mut world = World::new(Mode::EarlyAck);
    let (mut gone, mut stopped) = (world.connect(), world.connect());
    gone.write(0, 512, 1, NONE);
    stopped.write(512, 512, 2, NONE);
    world.settle();
    gone.vanish();
    stopped.stop(Stop::Gently);
    world.settle();
    assert!(world.close().expect("it ends").is_ok());
    assert_eq!((world.disk.byte(0), world.disk.byte(512)), ((1, 1), (2, 2)));
}

#[test]
fn a_batch_that_a_failed_sync_has_lost_is_written_again() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    client.write(0, 512, 7, NONE);
    world.settle();
    world.disk.split();
    world.disk.hold(is_write);
    world.pass_time();
    // The kernel has the batch in its page cache, and the server has not heard of that yet.
    world.disk.release(0);
    world.settle();
    assert_eq!(world.disk.byte(0), (7, 0));
    assert_eq!(world.disk.held(), [Op::Deliver]);
    world.disk.hold(|_| false);
    world.disk.fail(|op| *op == Op::Sync, Fault::Errno(5));
    let durable = client.write(4096, 512, 8, CommandFlags::FUA);
    world.settle();
    assert!(client.replies().contains(&(durable, WireError::EIO)));
    world.disk.release(0);
    world.disk.heal();
    world.settle();
    let _cleared = world.clear_poison();
    world.settle();
    let flush = client.flush();
    world.settle();
    assert_eq!(client.replies(), [(flush, WireError::OK)]);
    assert_eq!((world.health().dirty_bytes, world.disk.byte(0)), (0, (7, 7)));
}
