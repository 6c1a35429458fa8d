//! Changing the mode under the feet of clients, forgiving a loss, and the record that tells the
//! next server what may have been lost.
//!
//! Proves: a change makes everything acknowledged stable first, holds requests meanwhile, and
//! drops no connection; one that cannot do so changes nothing; no write is acknowledged before it
//! is on record that a crash may lose it; a loss changes the epoch, and after forgiveness the
//! export works again.

use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::epoch::Unstable;
use nbd_server::durability::{ChangeError, Mode};

use crate::disk::{Fault, Op};
use crate::world::World;

const NONE: CommandFlags = CommandFlags::NONE;
const EIO: Fault = Fault::Errno(5);

#[test]
fn a_change_makes_stable_what_was_acknowledged_and_keeps_connections() {
    for from in [Mode::Writeback, Mode::EarlyAck, Mode::Unsafe] {
        let mut world = World::new(from);
        let mut client = world.connect();
        client.write(0, 512, 1, NONE);
        world.settle();
        let mut change = world.change_mode(Mode::Writethrough);
        world.settle();
        assert!(matches!(change.try_recv(), Ok(Some(Ok(())))), "{from:?}");
        assert_eq!((world.mode(), world.disk.byte(0)), (Mode::Writethrough, (1, 1)), "{from:?}");
        client.write(512, 512, 2, NONE);
        world.settle();
        assert_eq!((world.disk.byte(512), client.replies().len()), ((2, 2), 2), "{from:?}");
    }
}

#[test]
fn requests_that_arrive_during_a_change_wait_for_it() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    // A write is under way when the change begins.
    world.disk.hold(|op| matches!(op, Op::Write(..)));
    let first = client.write(0, 512, 1, NONE);
    world.settle();
    let mut change = world.change_mode(Mode::Writethrough);
    world.settle();
    let second = client.write(4096, 512, 2, NONE);
    world.settle();
    assert!(matches!(change.try_recv(), Ok(None)));
    assert_eq!(world.disk.held().len(), 1, "the second one waits");
    world.disk.release(0);
    world.settle();
    assert!(matches!(change.try_recv(), Ok(Some(Ok(())))));
    assert_eq!(client.replies(), [(first, WireError::OK)]);
    assert_eq!(world.disk.held(), [Op::Write(4096, 512)], "it runs in the new mode");
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies(), [(second, WireError::OK)]);
}

#[test]
fn reads_go_on_during_a_change_and_see_what_was_acknowledged() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    world.disk.hold(|op| matches!(op, Op::Write(..)));
    client.write(0, 512, 7, NONE);
    world.settle();
    let _change = world.change_mode(Mode::Writeback);
    world.settle();
    client.replies();
    client.ask(CommandType::READ, 0, 512, NONE);
    world.settle();
    assert_eq!(client.data(512).expect("an answer").1, Ok(vec![7; 512]));
}

#[test]
fn one_change_at_a_time() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.hold(|op| matches!(op, Op::Write(..)));
    client.write(0, 512, 1, NONE);
    world.settle();
    let (mut one, mut other) = (world.change_mode(Mode::Writethrough), world.change_mode(Mode::Unsafe));
    world.settle();
    assert!(matches!(other.try_recv(), Ok(Some(Err(ChangeError::Underway)))));
    world.disk.release(0);
    world.settle();
    assert!(matches!(one.try_recv(), Ok(Some(Ok(())))));
    assert_eq!(world.mode(), Mode::Writethrough);
}

#[test]
fn a_change_that_cannot_make_everything_stable_changes_nothing() {
    for from in [Mode::Writeback, Mode::EarlyAck, Mode::Unsafe] {
        let mut world = World::new(from);
        let mut client = world.connect();
        client.write(0, 512, 1, NONE);
        world.settle();
        world.disk.fail(|op| *op == Op::Sync, EIO);
        let mut change = world.change_mode(Mode::Writethrough);
        world.settle();
        assert!(matches!(change.try_recv(), Ok(Some(Err(ChangeError::Unstable { .. })))), "{from:?}");
        assert_eq!(world.mode(), from);
    }
}

#[test]
fn no_write_is_acknowledged_before_it_is_on_record_that_it_may_be_lost() {
    for (mode, unstable) in [
        (Mode::Writeback, Unstable::HostCache),
        (Mode::EarlyAck, Unstable::ServerMemory),
        (Mode::Unsafe, Unstable::HostCache),
    ] {
        let mut world = World::after_a_clean_end(mode);
        let mut client = world.connect();
        world.disk.hold(|op| *op == Op::Persist);
        client.write(0, 512, 1, CommandFlags::FUA);
        world.settle();
        assert_eq!(client.replies().len(), usize::from(mode != Mode::Unsafe), "{mode:?}: FUA is kept");
        let plain = client.write(512, 512, 1, NONE);
        world.settle();
        assert_eq!(client.replies(), [], "{mode:?}");
        world.disk.release(0);
        world.settle();
        assert!(client.replies().contains(&(plain, WireError::OK)), "{mode:?}");
        assert_eq!(world.stored.record().unstable, unstable);
        // Once is enough.
        client.write(1024, 512, 1, NONE);
        world.settle();
        assert_eq!((client.replies().len(), !world.disk.held().is_empty()), (1, false), "{mode:?}");
    }
}

#[test]
fn writethrough_has_nothing_to_put_on_record() {
    let mut world = World::after_a_clean_end(Mode::Writethrough);
    let mut client = world.connect();
    world.disk.hold(|op| *op == Op::Persist);
    client.write(0, 512, 1, NONE);
    world.settle();
    assert_eq!((client.replies().len(), !world.disk.held().is_empty()), (1, false));
}

#[test]
fn a_quiet_export_puts_on_record_that_nothing_can_be_lost() {
    let mut world = World::after_a_clean_end(Mode::Writeback);
    let mut client = world.connect();
    let epoch = world.epoch();
    client.write(0, 512, 1, NONE);
    world.settle();
    world.pass_time();
    assert!(!world.stored.may_survive_power_cut(epoch), "nobody has flushed");
    client.flush();
    world.settle();
    assert!(!world.stored.may_survive_power_cut(epoch), "that costs more than it is worth at once");
    world.pass_time();
    assert!(world.stored.may_survive_power_cut(epoch));

    // A write that arrives while that is being put on record waits until it is no longer true.
    client.write(0, 512, 2, NONE);
    client.flush();
    world.settle();
    client.replies();
    world.disk.hold(|op| *op == Op::Persist);
    world.pass_time();
    client.write(512, 512, 3, NONE);
    world.settle();
    assert_eq!(client.replies(), [], "the record may already say that there is nothing to lose");
    world.disk.release(0);
    world.settle();
    assert_eq!(client.replies(), [], "and now it does");
    world.disk.release(0);
    world.settle();
    assert_eq!((client.replies().len(), world.stored.record().unstable), (1, Unstable::HostCache));
}

#[test]
fn a_killed_server_keeps_its_epoch_unless_it_held_data_itself() {
    for (mode, keeps) in [(Mode::Writeback, true), (Mode::Unsafe, true), (Mode::EarlyAck, false)] {
        let mut world = World::new(mode);
        let mut client = world.connect();
        let epoch = world.epoch();
        client.write(0, 512, 1, NONE);
        world.settle();
        let next = World::after(&world.disk, world.stored.clone(), mode);
        assert_eq!(next.epoch() == epoch, keeps, "{mode:?}");
    }
}

#[test]
fn a_server_after_a_killed_one_notices_that_the_kernel_lost_something() {
    for mode in [Mode::Writeback, Mode::Unsafe] {
        let mut world = World::new(mode);
        let mut client = world.connect();
        let epoch = world.epoch();
        client.write(0, 512, 1, NONE);
        world.settle();
        assert!(world.disk.write_back(0, Some(EIO)), "it was in the page cache");
        let next = World::after(&world.disk, world.stored.clone(), mode);
        assert_ne!(next.epoch(), epoch, "{mode:?}");
        assert!(next.health().poison.is_some(), "{mode:?}");
    }
}

#[test]
fn after_the_poison_is_cleared_the_export_works_with_another_epoch() {
    for mode in [Mode::Writethrough, Mode::Writeback, Mode::EarlyAck] {
        let mut world = World::new(mode);
        let mut client = world.connect();
        let epoch = world.epoch();
        client.write(0, 512, 1, NONE);
        world.settle();
        world.disk.fail(|op| *op == Op::Sync, EIO);
        client.write(512, 512, 2, CommandFlags::FUA);
        world.settle();
        world.disk.heal();
        client.flush();
        world.settle();
        assert_eq!(client.replies().last().expect("answers").1, WireError::EIO, "{mode:?}");
        assert_ne!(world.epoch(), epoch, "{mode:?}");
        assert_eq!(world.stored.record().epoch, world.epoch(), "{mode:?}: and the next server knows");

        let lost = world.epoch();
        let mut cleared = world.clear_poison();
        world.settle();
        assert_eq!(cleared.try_recv(), Ok(Some(true)), "{mode:?}");
        let flush = client.flush();
        world.settle();
        assert_eq!(client.replies(), [(flush, WireError::OK)], "{mode:?}");
        assert_eq!((world.health().poison, world.epoch()), (None, lost), "{mode:?}");
        let mut again = world.clear_poison();
        world.settle();
        assert_eq!(again.try_recv(), Ok(Some(false)), "{mode:?}: nothing to clear");
    }
}

#[test]
fn an_operator_who_waited_for_another_one_does_not_clear_the_next_loss() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    world.disk.fail(|op| *op == Op::Sync, EIO);
    client.write(0, 512, 1, NONE);
    client.flush();
    world.settle();
    assert!(world.health().poison.is_some());
    world.disk.heal();
    // The first one has cleared it and is about to put that on record.
    world.disk.hold(|op| *op == Op::Persist);
    let (mut one, mut other) = (world.clear_poison(), world.clear_poison());
    world.settle();
    assert_eq!((world.health().poison, world.disk.held()), (None, vec![Op::Persist]));
    world.disk.fail(|op| *op == Op::Sync, EIO);
    client.write(0, 512, 2, NONE);
    client.flush();
    world.settle();
    world.disk.heal();
    world.disk.hold(|_| false);
    world.disk.release(0);
    world.settle();
    assert_eq!((one.try_recv(), other.try_recv()), (Ok(Some(true)), Ok(Some(false))));
    assert!(world.health().poison.is_some(), "nobody has seen this loss");
}

#[test]
fn after_the_poison_is_cleared_no_description_tells_of_it_again() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect();
    client.write(0, 512, 1, NONE);
    world.settle();
    assert!(world.disk.write_back(0, Some(EIO)), "it was in the page cache");
    client.flush();
    world.settle();
    assert!(world.health().poison.is_some());
    let mut cleared = world.clear_poison();
    world.settle();
    assert_eq!(cleared.try_recv(), Ok(Some(true)));
    client.replies();
    // Two syncs at once, through two descriptions.
    world.disk.hold(|op| *op == Op::Sync);
    let writes = [512, 1024].map(|at| client.write(at, 512, 2, CommandFlags::FUA));
    world.settle();
    assert_eq!(world.disk.held(), [Op::Sync, Op::Sync]);
    world.disk.release(1);
    world.disk.release(0);
    world.settle();
    let mut replies = client.replies();
    replies.sort_by_key(|(cookie, _)| *cookie);
    assert_eq!(replies, writes.map(|cookie| (cookie, WireError::OK)));
}

#[test]
fn what_could_not_be_written_early_is_written_after_the_poison_is_cleared() {
    let mut world = World::new(Mode::EarlyAck);
    let mut client = world.connect();
    client.write(0, 512, 7, NONE);
    world.settle();
    world.disk.fail(|op| matches!(op, Op::Write(..)), Fault::Errno(28));
    world.pass_time();
    world.disk.heal();
    assert!(world.health().poison.is_some());
    let _cleared = world.clear_poison();
    world.settle();
    assert_eq!((world.health().dirty_bytes, world.disk.byte(0).0), (0, 7));
}
