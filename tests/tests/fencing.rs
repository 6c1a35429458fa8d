//! Proves, with `strace` as the one who stalls a write, that a new connection sees nothing of what a dead one left
//! under way: its READ and its FLUSH are answered when the stalled write has landed, wherever they go, as whoever takes
//! over from a dead host reads before it writes. And that connections which live on do not wait for it.

use std::thread;

use common::proto::{CommandType, WireError};
use tests::client::{Client, FUA, PLAIN, Reply, Socket};
use tests::disk::Disk;
use tests::server::{Endpoint, Server};
use tests::trace::{self, Trace, What};
use tests::{tool, wait_until};

const BLOCK: u32 = 4096;
/// Bytes of the stalled write: so many that no thread which also serves connections would try it.
const LONG: usize = 512 << 10;
/// Where the stalled write goes.
const STALLED: u64 = 1 << 20;
/// Where nothing goes.
const ELSEWHERE: u64 = 3 << 20;
/// How long the write stalls; if that was too short to see anything on a busy machine, longer.
const STALLS: [&str; 3] = ["1s", "5s", "20s"];

/// What a request of the new connection is answered with, or `None` where the write had landed before it was sent.
fn seen_by_a_new_connection(command: CommandType, at: u64) -> Option<bool> {
    STALLS.into_iter().find_map(|stall| {
        let disk = Disk::sparse(8 << 20);
        let inject = format!("pwrite64,pwritev,pwritev2:delay_enter={stall}");
        let builder = Server::builder().export(disk.spec()).unix().tcp();
        let traced = trace::start(builder, disk.dir(), &[&inject])?;
        let log = || std::fs::read_to_string(disk.dir().join("strace")).expect("strace writes a log");
        let mut living = Client::connect(traced.server.endpoint());
        living.cookies_from(1000);
        let mut doomed = Client::connect(traced.server.endpoint());
        doomed.send_write(FUA, STALLED, &vec![b'S'; LONG]);
        let (plain, durable) = (What::Write(STALLED), What::DurableWrite(STALLED));
        wait_until("the write to stall", || {
            Trace::has_begun(&log(), plain) || Trace::has_begun(&log(), durable)
        });
        let ends_before = ends_of_connections(&log());
        drop(doomed);
        wait_until("the server to see the connection's end", || ends_of_connections(&log()) > ends_before);
        // Connected before the living one asks; when the server begins to talk to it is the server's choice.
        let to = &traced.server.endpoints()[1];
        let socket = Socket::connect(to).expect("the kernel takes a connection");
        let (beside, asked, reply) = thread::scope(|scope| {
            let new = scope.spawn(move || ask_on(socket, to, command, at));
            let beside = living.send(CommandType::READ, PLAIN, ELSEWHERE, BLOCK);
            assert_eq!(living.reply().error, WireError::OK);
            let (asked, reply) = new.join().expect("the new connection is served");
            (beside, asked, reply)
        });
        assert_eq!(reply.error, WireError::OK);
        drop(living);
        let trace = traced.finish();
        let landed = trace.find(plain).or(trace.find(durable)).expect("it was seen to begin");
        let (_, beside) = trace.answer(beside);
        if beside.began > landed.ended {
            return None;
        }
        let (_, answered) = trace.answer(asked);
        let is_stale = at == STALLED && command == CommandType::READ && reply.data != [b'S'; BLOCK as usize];
        Some(answered.began > landed.ended && !is_stale)
    })
}

/// Asks one thing on a connection of its own; returns the request's cookie, and the reply.
fn ask_on(socket: Socket, to: &Endpoint, command: CommandType, at: u64) -> (u64, Reply) {
    let mut client = Client::over(socket, to, "").expect("the server shakes hands");
    client.cookies_from(2000);
    let cookie = match command {
        CommandType::FLUSH => client.send(command, PLAIN, 0, 0),
        _ => client.send(command, PLAIN, at, BLOCK),
    };
    (cookie, client.reply())
}

/// How often the server has read that nothing more will come.
fn ends_of_connections(log: &str) -> usize {
    let reads = ["recvfrom(", "recvmsg(", "readv(", "read(", "<... re"];
    let ended = log.lines().filter(|line| line.trim_end().ends_with(" = 0"));
    ended.filter(|line| reads.iter().any(|read| line.contains(read))).count()
}

fn assert_waits(command: CommandType, at: u64) {
    if tool::find("strace", "strace").is_none() {
        return;
    }
    let waited = seen_by_a_new_connection(command, at);
    let waited = waited.expect("a living connection is answered while a dead one's write stalls");
    assert!(waited, "{command:?} of a new connection was answered before a dead one's write had landed");
}

#[test]
fn c4_a_read_of_the_same_place_waits_for_a_dead_connections_fua_write() {
    assert_waits(CommandType::READ, STALLED);
}

#[test]
fn c4_a_read_of_another_place_waits_for_a_dead_connections_fua_write() {
    assert_waits(CommandType::READ, ELSEWHERE);
}

#[test]
fn c4_a_flush_waits_for_a_dead_connections_fua_write() {
    assert_waits(CommandType::FLUSH, 0);
}
