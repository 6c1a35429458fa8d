//! Proves that many requests are in flight on one connection and are answered when they are
//! ready, not when it is their turn; that two hundred connections are served at once; and that
//! under a random mix on several connections each request is answered once, by its own cookie,
//! with the data that was last written.

use std::collections::HashMap;
use std::io::Write;
use std::thread;

use common::proto::{CommandFlags, CommandType, WireError};
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::model::Rng;
use tests::server::{Builder, Endpoint, Server};
use tests::trace;

const MIB: u64 = 1 << 20;

#[test]
fn sixty_four_requests_on_one_connection_are_answered_out_of_order() {
    let disk = Disk::holding(&pattern(4, 8 << 20));
    let builder = Server::builder().export(disk.spec()).unix();
    // Each sync takes as long as on a slow disk.
    let Some(traced) = trace::start(builder, disk.dir(), &["fdatasync:delay_enter=500ms"]) else { return };
    let mut client = Client::connect(traced.server.endpoint());
    let mut out = Vec::new();
    let mut slow = Vec::new();
    for n in 0..32 {
        // A FLUSH, a durable trim or a durable zeroing, then a read of what is in memory.
        let command = [CommandType::FLUSH, CommandType::TRIM, CommandType::WRITE_ZEROES][n % 3];
        let (flags, at, len) =
            if command == CommandType::FLUSH { (PLAIN, 0, 0) } else { (FUA, n as u64 * 4096, 4096) };
        slow.push(client.encode(&mut out, command, flags, at, len));
        client.encode(&mut out, CommandType::READ, PLAIN, 4 * MIB + n as u64 * 4096, 4096);
    }
    client.socket.write_all(&out).unwrap();
    let order: Vec<u64> = (0..64)
        .map(|_| {
            let reply = client.reply();
            assert_eq!(reply.error, WireError::OK);
            reply.cookie
        })
        .collect();
    assert_eq!(client.outstanding(), 0, "each was answered once");
    let place = |cookie: u64| order.iter().position(|it| *it == cookie).unwrap();
    let last_read = (1..=64).filter(|cookie| !slow.contains(cookie)).map(place).max().unwrap();
    let first_slow = slow.iter().copied().map(place).min().unwrap();
    assert!(last_read < first_slow, "no read waits for a sync that was asked for before it: {order:?}");
}

#[test]
fn two_hundred_connections_are_served_at_once() {
    let server = Server::builder().export("memory:64M").unix().tcp().start();
    let mut clients: Vec<Client> = (0..200).map(|n| Client::connect(&server.endpoints()[n % 2])).collect();
    // Every client has requests in flight before any reply is read.
    for (n, client) in clients.iter_mut().enumerate() {
        let seed = u8::try_from(n).unwrap();
        client.send_write(PLAIN, n as u64 * 65536, &pattern(seed, 65536));
        client.send(CommandType::FLUSH, PLAIN, 0, 0);
    }
    for client in &mut clients {
        assert_eq!((client.reply().error, client.reply().error), (WireError::OK, WireError::OK));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let neighbour = (n + 1) % 200;
        client.send(CommandType::READ, PLAIN, neighbour as u64 * 65536, 65536);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let neighbour = u8::try_from((n + 1) % 200).unwrap();
        assert!(client.reply().data == pattern(neighbour, 65536), "client {n}");
    }
    let threads = server.status("Threads");
    assert!(threads < 64, "{threads} threads for 200 connections");
}

/// What one connection has in flight, and what its part of the disk must hold.
struct Player {
    client: Client,
    rng: Rng,
    /// Where the player's part begins.
    base: u64,
    /// What its part holds once all writes received so far are done.
    model: Vec<u8>,
    /// By cookie: what a read must find.
    reads: HashMap<u64, Vec<u8>>,
    /// Places that a request in flight reads or writes.
    busy: Vec<(u64, std::ops::Range<usize>)>,
}

const PART: usize = 256 << 10;
const IN_FLIGHT: usize = 32;

impl Player {
    fn new(to: &Endpoint, base: u64, rng: Rng) -> Player {
        let client = Client::connect(to);
        let model = vec![0; PART];
        Player { client, rng, base, model, reads: HashMap::new(), busy: Vec::new() }
    }

    /// Plays `rounds` random requests to their end.
    fn play(mut self, rounds: usize) -> Vec<u8> {
        for _ in 0..rounds {
            while self.client.outstanding() >= IN_FLIGHT {
                self.take_reply();
            }
            self.send_something();
        }
        while self.client.outstanding() > 0 {
            self.take_reply();
        }
        self.client.disconnect();
        self.model
    }

    fn send_something(&mut self) {
        let start = self.below(PART - 1);
        let len = 1 + self.below((PART - start).min(20_000));
        let range = start..start + len;
        let reading = self.rng.below(2) == 0;
        // Overlapping writes take effect in the order of receipt, so they may be in flight
        // together; a read next to a write may see either, so it may not.
        let clash = self.busy.iter().any(|(cookie, busy)| {
            let overlaps = busy.start < range.end && range.start < busy.end;
            overlaps && reading != self.reads.contains_key(cookie)
        });
        if clash {
            return self.take_reply();
        }
        let at = self.base + start as u64;
        let flags = if self.rng.below(20) == 0 { FUA } else { PLAIN };
        let length = u32::try_from(len).expect("ranges are short");
        let cookie = match self.rng.below(10) {
            _ if reading => {
                let cookie = self.client.send(CommandType::READ, PLAIN, at, length);
                self.reads.insert(cookie, self.model[range.clone()].to_vec());
                cookie
            }
            0 => {
                self.model[range.clone()].fill(0);
                self.client.send(CommandType::WRITE_ZEROES, flags | CommandFlags::NO_HOLE, at, length)
            }
            1 => {
                self.model[range.clone()].fill(0);
                self.client.send(CommandType::WRITE_ZEROES, flags, at, length)
            }
            2 => {
                // This server promises that trimmed ranges read as zero.
                self.model[range.clone()].fill(0);
                self.client.send(CommandType::TRIM, flags, at, length)
            }
            3 => {
                self.client.send(CommandType::FLUSH, PLAIN, 0, 0);
                return;
            }
            _ => {
                let data = pattern(self.rng.byte(), len);
                self.model[range.clone()].copy_from_slice(&data);
                self.client.send_write(flags, at, &data)
            }
        };
        self.busy.push((cookie, range));
    }

    fn take_reply(&mut self) {
        let reply = self.client.reply();
        assert_eq!(reply.error, WireError::OK);
        self.busy.retain(|(cookie, _)| *cookie != reply.cookie);
        let expected = self.reads.remove(&reply.cookie).unwrap_or_default();
        assert!(reply.data == expected, "wrong data in reply to {}", reply.cookie);
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.rng.below(bound as u64)).expect("it is below a usize")
    }
}

/// Several players, each in its own part, all on one export.
fn tournament(spec: impl Into<std::ffi::OsString>, mode: &str, rounds: usize) -> Vec<u8> {
    play(Server::builder().export(spec).args(&["--durability", mode]), rounds)
}

fn play(builder: Builder, rounds: usize) -> Vec<u8> {
    let server = builder.unix().tcp().start();
    let mut rng = Rng::seeded();
    let players: Vec<_> = (0..6_usize)
        .map(|n| {
            let player = Player::new(&server.endpoints()[n % 2], (n * PART) as u64, rng.fork());
            thread::spawn(move || player.play(rounds))
        })
        .collect();
    let parts: Vec<Vec<u8>> =
        players.into_iter().map(|player| player.join().expect("a player that wins")).collect();
    let model = parts.concat();
    let mut client = Client::connect(server.endpoint());
    let len = u32::try_from(model.len()).expect("the parts are small");
    assert!(client.read(0, len).expect("a read") == model, "all of it at the end");
    drop(client);
    assert_eq!(server.terminate().code, Some(0));
    model
}

#[test]
fn a_random_mix_on_a_file_matches_memory() {
    let disk = Disk::sparse((6 * PART) as u64);
    let model = tournament(disk.spec(), "writeback", 1500);
    assert!(disk.content() == model, "and the file too");
}

#[test]
fn a_random_mix_on_memory_matches_memory() {
    tournament("memory:2M", "unsafe", 3000);
}

#[test]
fn a_random_mix_in_writethrough_matches_memory() {
    let disk = Disk::sparse((6 * PART) as u64);
    let model = tournament(disk.spec(), "writethrough", 300);
    assert!(disk.content() == model, "and the file too");
}

#[test]
fn a_random_mix_in_early_ack_matches_memory() {
    let disk = Disk::sparse((6 * PART) as u64);
    // A cache so small that it fills and long writes go past it, and one so lazy that reads must
    // look into it.
    for limits in [["--dirty-max=64K", "--early-ack-max=16K"], ["--dirty-max=4M", "--dirty-age=60"]] {
        let server = Server::builder().export(disk.spec()).args(&["--durability", "early-ack"]).args(&limits);
        let model = play(server, 1500);
        assert!(disk.content() == model, "and the file too");
        std::fs::write(disk.path(), vec![0; 6 * PART]).unwrap();
    }
}
