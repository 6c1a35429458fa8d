//! Proves that nobody waits for somebody else's disk, client or log: a good client is answered while its neighbours are
//! in trouble, nothing of it is lost, the log says little, and SIGTERM ends the server. `cargo xtask neighbours` does the
//! same for longer, and judges by the second.

use std::time::Duration;

use common::proto::{CommandType, WireError};
use tests::client::{Client, PLAIN, Socket};
use tests::disk::{Disk, pattern};
use tests::neighbours::table::Table;
use tests::neighbours::{Trouble, all_at_once};
use tests::server::Server;
use tests::slow_disk::{self, Pace, SlowDisk};
use tests::wait_until;

/// A guard against hangs only: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(10);
/// How long each trouble lasts at least.
const LASTING: Duration = Duration::from_secs(8);

#[test]
fn nobody_waits_for_somebody_else() {
    let (outcomes, failures) = all_at_once(&Trouble::ALL, LASTING);
    let table = Table { outcomes: &outcomes, limit: LIMIT };
    println!("{table}");
    let faults = [failures, table.faults()].concat();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A disk that is quick yet, and a server of it and of memory with one worker.
fn with_a_slow_disk(args: &[&str], more: &[&SlowDisk]) -> Option<(SlowDisk, Server)> {
    if !slow_disk::can_be_made() {
        return None;
    }
    let disk = SlowDisk::make(16 << 20).expect("a FUSE file system can be mounted");
    let state = tempfile::tempdir().expect("a temporary directory can be made");
    let mut builder = Server::builder()
        .args(args)
        .args(&["--workers", "1", "--state-dir", state.path().to_str().expect("temporary paths are text")])
        .export(format!("bad={}", disk.path().display()))
        .export("good=memory:1M")
        .unix();
    for (number, disk) in more.iter().enumerate() {
        builder = builder.export(format!("other-{number}={}", disk.path().display()));
    }
    let server = builder.start();
    Some((disk, server))
}

fn connect(server: &Server, export: &str) -> Client {
    Client::try_connect(server.endpoint(), export).expect("it is served")
}

#[test]
fn who_was_given_to_a_worker_a_moment_before_it_hung_is_served_by_another() {
    let Some((disk, server)) = with_a_slow_disk(&[], &[]) else { return };
    for _ in 0..5 {
        // Alone on its worker, which writes by itself.
        let mut bad = connect(&server, "bad");
        assert_eq!(bad.flush(), WireError::OK);
        disk.set(Pace::Hung);
        bad.send_write(PLAIN, 0, &[1; 4096]);
        while disk.hung() == 0 {
            std::thread::yield_now();
        }
        let early: Vec<Socket> =
            (0..4).map(|_| Socket::connect(server.endpoint()).expect("the kernel takes it")).collect();
        for socket in early {
            let mut good = Client::over(socket, server.endpoint(), "good").expect("it is served");
            assert_eq!(good.write(PLAIN, 0, &[1; 4096]), WireError::OK);
            good.disconnect();
        }
        disk.set(Pace::Quick);
        assert_eq!(bad.reply().error, WireError::OK);
        bad.disconnect();
    }
}

#[test]
fn reads_of_a_hung_disk_leave_the_ring_to_others() {
    if !slow_disk::can_be_made() {
        return;
    }
    let other = SlowDisk::make(1 << 20).expect("a FUSE file system can be mounted");
    let Some((disk, server)) = with_a_slow_disk(&["--direct"], &[&other]) else { return };
    let mut quick = connect(&server, "other-0");
    let mut clients: Vec<Client> = (0..2).map(|_| connect(&server, "bad")).collect();
    disk.set(Pace::Hung);
    for (client, number) in clients.iter_mut().zip(0..) {
        for n in 0..100 {
            client.send(CommandType::READ, PLAIN, (number * 100 + n) * 32768, 4096);
        }
    }
    // As many as the kernel has threads for, were it not told otherwise.
    wait_until("the disk to hang", || disk.hung() >= 8);
    assert_eq!(quick.read(0, 4096), Ok(vec![0; 4096]));
    disk.set(Pace::Quick);
    for client in &mut clients {
        assert!((0..100).all(|_| client.reply().error == WireError::OK));
    }
}

#[test]
fn pages_that_a_hung_disk_has_not_filled_are_not_waited_for_where_others_are_served() {
    let Some((disk, server)) = with_a_slow_disk(&[], &[]) else { return };
    let mut good = connect(&server, "good");
    let mut clients: Vec<Client> = (0..4).map(|_| connect(&server, "bad")).collect();
    disk.set(Pace::Hung);
    for client in &mut clients {
        client.send(CommandType::READ, PLAIN, 0, 64 << 10);
        wait_until("the disk to hang", || disk.hung() > 0);
        assert_eq!(good.read(0, 4096), Ok(vec![0; 4096]));
    }
    disk.set(Pace::Quick);
    assert!(clients.iter_mut().all(|client| client.reply().data == vec![0; 64 << 10]));
}

#[test]
fn what_was_lent_is_read_once_others_share_the_thread() {
    let content = pattern(3, 8 << 20);
    let disk = Disk::holding(&content);
    let server = Server::builder()
        .args(&["--workers", "1"])
        .export(disk.spec())
        .export("good=memory:1M")
        .unix()
        .start();
    // Alone, and it does not fetch its replies yet.
    let mut client = Client::connect(server.endpoint());
    let asked: Vec<u64> = (0..8).map(|n| client.send(CommandType::READ, PLAIN, n << 20, 1 << 20)).collect();
    let mut good = connect(&server, "good");
    assert_eq!(good.flush(), WireError::OK);
    for _ in 0..8 {
        let reply = client.reply();
        assert_eq!(reply.error, WireError::OK);
        let n = asked.iter().position(|cookie| *cookie == reply.cookie).expect("it was asked");
        assert!(reply.data == content[n << 20..][..1 << 20], "the {n}th MiB");
    }
}
