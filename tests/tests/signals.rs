//! Proves that signals mean what people mean by them, whatever disks and reloads do: two SIGTERMs at once are one wish, a
//! later one does not wait, none is deaf, and what was not lost is not called lost. Disks are slow as `strace` holds
//! their syncs up.

use std::fs;

use common::proto::WireError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::client::{Client, PLAIN};
use tests::disk::Disk;
use tests::operator::Operator;
use tests::server::{Exit, Server};
use tests::trace::{self, Traced};
use tests::wait_until;

/// Every sync of data takes so long.
fn slow(seconds: u32) -> String {
    format!("fdatasync:delay_enter={seconds}s")
}

/// A server of a disk, with a write that is not stable yet, and its epoch.
fn with_a_write(disk: &Disk, args: &[&str], seconds: u32) -> Option<(Traced, String)> {
    let operator = Operator::beside(disk);
    let builder = operator.of(Server::builder().export(disk.path()).unix()).args(args);
    let traced = trace::start(builder, disk.dir(), &[&slow(seconds)])?;
    let mut client = Client::connect(traced.server.endpoint());
    assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
    client.disconnect();
    let epoch = operator.epoch();
    Some((traced, epoch))
}

/// How a server ends that has said its last word. Its tracer would wait with a thread for the disk that it plays, though
/// the process is gone.
fn end_of(traced: Traced, last_word: &str) -> Exit {
    let tracer =
        Pid::from_raw(i32::try_from(traced.server.status("TracerPid")).expect("process ids are small"));
    let _said = traced.server.logged(last_word);
    kill(tracer, Signal::SIGKILL).expect("strace is there");
    traced.server.wait()
}

/// The epoch of the server that comes after it.
fn epoch_after(disk: &Disk) -> String {
    let operator = Operator::beside(disk);
    let server = operator.of(Server::builder().export(disk.path()).unix()).start();
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.flush(), WireError::OK);
    assert!(client.read(0, 4096) == Ok(vec![1; 4096]), "it was acknowledged");
    client.disconnect();
    operator.epoch()
}

#[test]
fn two_signals_at_once_are_one_wish() {
    for mode in ["writeback", "early-ack"] {
        let disk = Disk::sparse(1 << 20);
        let args = ["--durability", mode, "--dirty-age", "600"];
        let Some((traced, epoch)) = with_a_write(&disk, &args, 2) else { return };
        traced.server.signal(Signal::SIGTERM);
        let _said = traced.server.logged("SIGTERM: finishing");
        traced.server.signal(Signal::SIGTERM);
        let exit = traced.server.wait();
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        assert!(!exit.log.contains("ERROR"), "{}", exit.log);
        assert_eq!(epoch_after(&disk), epoch, "nothing was lost");
    }
}

#[test]
fn a_later_signal_does_not_wait_and_loses_nothing_that_the_host_has() {
    let disk = Disk::sparse(1 << 20);
    let idle = Disk::sparse(1 << 20);
    let export = format!("idle={}", idle.path().display());
    let Some((traced, epoch)) = with_a_write(&disk, &["memory=memory:1M", &export], 600) else { return };
    wait_until("the server to leave", || {
        traced.server.signal(Signal::SIGTERM);
        traced.server.log().contains("leaving at once")
    });
    let exit = end_of(traced, "not known to be stable");
    assert_eq!(exit.code, Some(1), "not everything is stable: {}", exit.log);
    let errors: Vec<&str> = exit.log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(
        errors.len() == 1 && errors[0].contains("work{export=\"\"}"),
        "only one has something: {errors:#?}"
    );
    assert_eq!(epoch_after(&disk), epoch, "nothing was lost");
}

#[test]
fn a_disk_that_does_not_answer_holds_the_end_up_only_for_so_long() {
    let disk = Disk::sparse(1 << 20);
    let Some((traced, epoch)) = with_a_write(&disk, &["--shutdown-timeout", "1"], 600) else { return };
    traced.server.signal(Signal::SIGTERM);
    let exit = end_of(traced, "its disk did not store it in time");
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert_eq!(epoch_after(&disk), epoch, "nothing was lost");
}

/// A server of a disk by a configuration file, where a change of the mode can hang.
fn configured(disk: &Disk) -> Option<Traced> {
    configure(disk, "writeback", "");
    let file = disk.dir().join("nbd.toml");
    trace::start(Server::builder().config(&file, 1), disk.dir(), &[&slow(600)])
}

fn configure(disk: &Disk, mode: &str, more: &str) {
    let (dir, path) = (disk.dir(), disk.path());
    let text = format!(
        "unix = [{:?}]\nshutdown-timeout = 1\n[[export]]\nname = \"slow\"\nserve = {path:?}\ndurability = {mode:?}\n{more}",
        dir.join("socket")
    );
    fs::write(dir.join("nbd.toml"), text).expect("a file can be made");
}

#[test]
fn signals_and_other_exports_do_not_wait_for_a_reload_that_waits_for_a_disk() {
    let disk = Disk::sparse(1 << 20);
    let Some(traced) = configured(&disk) else { return };
    let server = &traced.server;
    let mut client = Client::try_connect(server.endpoint(), "slow").unwrap();
    assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
    client.disconnect();
    configure(&disk, "writethrough", "");
    server.signal(Signal::SIGHUP);
    let strace = disk.dir().join("strace");
    wait_until("the change of the mode to hang", || {
        fs::read_to_string(&strace).is_ok_and(|log| log.contains("fdatasync("))
    });
    server.signal(Signal::SIGUSR1);
    let _counters = server.logged("counters");
    // Another reload is carried out meanwhile.
    configure(&disk, "writethrough", "[[export]]\nname = \"new\"\nserve = \"memory:1M\"\n");
    server.signal(Signal::SIGHUP);
    let _said = server.logged("exports to add: 1, to remove: 0, to change: 0");
    let _said = server.logged("added export=\"new\"");
    assert_eq!(Client::try_connect(server.endpoint(), "new").unwrap().flush(), WireError::OK);
    traced.server.signal(Signal::SIGTERM);
    let exit = end_of(traced, "its disk did not store it in time");
    assert_eq!(exit.code, Some(1), "{}", exit.log);
}

#[test]
fn hangups_say_what_came_of_them() {
    let disk = Disk::sparse(1 << 20);
    configure(&disk, "writeback", "");
    let server = Server::builder().config(&disk.dir().join("nbd.toml"), 1).start();
    server.signal(Signal::SIGHUP);
    let _said = server.logged("was reloaded: no export has changed");
    configure(&disk, "early-ack", "");
    server.signal(Signal::SIGHUP);
    let _said = server.logged("was reloaded: exports to add: 0, to remove: 0, to change: 1");
    let _said = server.logged("the mode is early-ack now");
    assert_eq!(server.terminate().code, Some(0));

    let server = Server::of("memory:1M");
    server.signal(Signal::SIGHUP);
    let exit = server.wait();
    assert_eq!(exit.code, Some(0));
    assert!(exit.log.contains("SIGHUP, and no --config to read again"), "{}", exit.log);
}
