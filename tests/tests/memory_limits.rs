//! Proves that `--dirty-max` and `--max-memory` bound what the process takes, however short the writes are: those that
//! early-ack acknowledges, and those that wait for a disk.

use std::io::Write;
use std::thread;
use std::time::Duration;

use common::proto::{CommandType, WireError};
use tests::client::{Client, FUA, PLAIN};
use tests::disk::Disk;
use tests::server::Server;
use tests::{trace, wait_until};

/// What the process may take with both at 64 MiB.
const KIB_MAX: u64 = 200 << 10;
/// Writes on the way at a time, on each connection.
const IN_FLIGHT: usize = 256;
const CONNECTIONS: usize = 4;

/// Acknowledged writes of `len` bytes, each on a page of its own, of a server that stores none before it must.
fn peak_kib(len: usize, writes: u64) -> u64 {
    let limits =
        ["--durability", "early-ack", "--dirty-max", "64M", "--max-memory", "64M", "--dirty-age", "600"];
    let server = Server::builder().export("null:4G").unix().args(&limits).start();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(server.endpoint())).collect();
    let data = vec![1; len];
    let (mut sent, mut out) = (0, Vec::new());
    while sent < writes {
        for client in &mut clients {
            out.clear();
            for _ in 0..IN_FLIGHT {
                // Never neighbours: nothing can be merged.
                let len = u32::try_from(len).expect("writes are short");
                client.encode(&mut out, CommandType::WRITE, PLAIN, sent * 8192, len);
                out.extend(&data);
                sent += 1;
            }
            client.socket.write_all(&out).expect("the server takes requests");
        }
        for client in &mut clients {
            while client.outstanding() > 0 {
                assert_eq!(client.reply().error, WireError::OK);
            }
        }
    }
    let peak = server.status("VmHWM");
    println!("{sent} writes of {len} bytes: {peak} KiB at most");
    assert_eq!(clients[0].flush(), WireError::OK, "what was acknowledged can be stored");
    peak
}

#[test]
fn early_ack_bounds_its_memory_under_writes_of_one_byte() {
    let peak = peak_kib(1, 120_000);
    assert!(peak <= KIB_MAX, "{peak} KiB");
}

#[test]
fn early_ack_bounds_its_memory_under_writes_of_a_sector() {
    let peak = peak_kib(512, 120_000);
    assert!(peak <= KIB_MAX, "{peak} KiB");
}

#[test]
fn early_ack_bounds_its_memory_under_writes_of_a_page() {
    let peak = peak_kib(4096, 60_000);
    assert!(peak <= KIB_MAX, "{peak} KiB");
}

#[test]
fn waiting_writes_of_one_byte_are_bounded_by_max_memory() {
    const CLIENTS: usize = 160;
    let disk = Disk::sparse(1 << 30);
    let builder = Server::builder().export(disk.path()).unix().args(&["--max-memory", "64M"]);
    let stalls = "pwritev2,fdatasync:delay_enter=600s";
    let Some(traced) = trace::start(builder, disk.dir(), &[stalls]) else { return };
    let mut out = Vec::new();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(traced.server.endpoint());
        out.clear();
        for place in 0..IN_FLIGHT {
            let at = (number * IN_FLIGHT + place) as u64 * 8192;
            client.encode(&mut out, CommandType::WRITE, FUA, at, 1);
            out.push(1);
        }
        client.socket.write_all(&out).expect("the server takes requests");
        clients.push(client);
    }
    // It has read what it will read when it does nothing any more.
    let mut ticks = u64::MAX;
    wait_until("the server to rest", || {
        thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut ticks, traced.server.cpu_ticks());
        before == ticks
    });
    let peak = traced.server.status("VmHWM");
    // Whoever is delayed ends only when strace lets go.
    traced.release();
    println!("{} writes of a byte wait: {peak} KiB at most", CLIENTS * IN_FLIGHT);
    assert!(peak <= KIB_MAX, "{peak} KiB");
}

#[test]
fn payloads_beyond_what_was_advertised_wait_for_memory_like_others() {
    let server = Server::builder().export("null:4G").unix().args(&["--max-memory", "128M"]).start();
    let data = vec![1; 64 << 20];
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::connect(server.endpoint());
                assert_eq!(client.write(PLAIN, 0, &data), WireError::OK);
                assert_eq!(client.read(0, 64 << 20).map(|read| read.len()), Ok(64 << 20));
            });
        }
    });
    let peak = server.status("VmHWM");
    println!("eight clients of 64 MiB at a time: {peak} KiB at most");
    assert!(peak <= KIB_MAX, "{peak} KiB");
}
