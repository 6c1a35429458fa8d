//! Proves that who waits for a slow disk makes nobody else wait: neither clients of other exports, whether
//! they come before or after it, nor those who only want to know what there is. Slow is a write that
//! `strace` holds up; there is one worker, which all would share.

use std::time::{Duration, Instant};

use common::proto::{CommandType, WireError};
use tests::client::{Client, FUA, PLAIN, Socket};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::trace::{self, Trace, Traced, What};
use tests::wait_until;

/// Longer than anything else here takes, and shorter than the patience of a client.
const HOLD: Duration = Duration::from_secs(4);

/// One worker, and exports a and b, of which the first write takes long.
fn serve(disks: [&Disk; 2]) -> Option<Traced> {
    let builder = Server::builder()
        .export(format!("a={}", disks[0].path().display()))
        .export(format!("b={}", disks[1].path().display()))
        .unix()
        .args(&["--workers", "1"]);
    let inject = format!("pwrite64:delay_enter={}s:when=1", HOLD.as_secs());
    trace::start(builder, disks[0].dir(), &[&inject])
}

/// Sends the slow write, and returns once it has begun.
fn begin_slow(client: &mut Client, disk: &Disk) -> u64 {
    let cookie = client.send_write(PLAIN, 0, &[1; 4096]);
    let log = disk.dir().join("strace");
    let begun = || std::fs::read_to_string(&log).is_ok_and(|log| Trace::has_begun(&log, What::Write(0)));
    wait_until("the slow write to begin", begun);
    cookie
}

/// Nothing that `strace` holds up: it counts by thread.
fn reads_and_changes(client: &mut Client) {
    assert!(client.read(8192, 4096).expect("the other disk is quick") == pattern(2, 16 << 10)[8192..12288]);
    assert_eq!(client.ask(CommandType::WRITE_ZEROES, FUA, 0, 4096), WireError::OK);
    assert_eq!(client.ask(CommandType::TRIM, PLAIN, 4096, 4096), WireError::OK);
    assert!(client.read(0, 4096).expect("the other disk is quick") == [0; 4096]);
}

fn disks() -> [Disk; 2] {
    [Disk::sparse(1 << 20), Disk::holding(&pattern(2, 16 << 10))]
}

#[test]
fn one_who_comes_while_a_disk_hangs_is_served() {
    let [a, b] = disks();
    let Some(traced) = serve([&a, &b]) else { return };
    let endpoint = traced.server.endpoint();
    let mut slow = Client::try_connect(endpoint, "a").unwrap();
    let begun = Instant::now();
    let cookie = begin_slow(&mut slow, &a);
    // A worker is known to be stuck a little later than it is: whoever comes before has to wait with it.
    let mut early = Vec::new();
    wait_until("the server to notice", || {
        early.push(Socket::connect(endpoint).expect("the server listens"));
        traced.server.log().contains("starting another one")
    });
    for _ in 0..3 {
        reads_and_changes(&mut Client::try_connect(endpoint, "b").unwrap());
    }
    assert!(begun.elapsed() < HOLD, "the others have waited");
    let reply = slow.reply();
    assert_eq!((reply.cookie, reply.error), (cookie, WireError::OK));
    assert!(begun.elapsed() >= HOLD, "the write was not held up");
}

#[test]
fn one_who_was_there_before_a_disk_hangs_is_served() {
    let [a, b] = disks();
    let Some(traced) = serve([&a, &b]) else { return };
    let endpoint = traced.server.endpoint();
    let mut slow = Client::try_connect(endpoint, "a").unwrap();
    let mut other = Client::try_connect(endpoint, "b").unwrap();
    let begun = Instant::now();
    let cookie = begin_slow(&mut slow, &a);
    reads_and_changes(&mut other);
    // Reads of the slow export itself go on, too.
    let mut third = Client::try_connect(endpoint, "a").unwrap();
    assert!(third.read(512 << 10, 4096).unwrap() == [0; 4096]);
    assert!(begun.elapsed() < HOLD, "the others have waited");
    let reply = slow.reply();
    assert_eq!((reply.cookie, reply.error), (cookie, WireError::OK));
}

#[test]
fn a_disk_that_hangs_leaves_threads_to_the_others() {
    let [a, b] = disks();
    let long = vec![1; 512 << 10];
    let builder = Server::builder()
        .export(format!("a={}", a.path().display()))
        .export(format!("b={}", b.path().display()))
        .unix();
    let inject = format!("pwrite64:delay_enter={}s", HOLD.as_secs());
    let Some(traced) = trace::start(builder, a.dir(), &[&inject]) else { return };
    let endpoint = traced.server.endpoint();
    let mut slow = Client::try_connect(endpoint, "a").unwrap();
    let begun = Instant::now();
    // Longer than a worker would write by itself, and more than the server has threads for.
    for _ in 0..64 {
        slow.send_write(FUA, 0, &long);
    }
    let log = a.dir().join("strace");
    wait_until("the slow writes to begin", || {
        std::fs::read_to_string(&log).is_ok_and(|log| Trace::has_begun(&log, What::Write(0)))
    });
    let mut other = Client::try_connect(endpoint, "b").unwrap();
    assert_eq!(other.flush(), WireError::OK);
    assert_eq!(other.ask(CommandType::TRIM, FUA, 4096, 4096), WireError::OK);
    assert!(other.read(8192, 4096).expect("the other disk is quick") == pattern(2, 16 << 10)[8192..12288]);
    assert!(begun.elapsed() < HOLD, "the others have waited");
    traced.release();
    while slow.outstanding() > 0 {
        assert_eq!(slow.reply().error, WireError::OK);
    }
}
