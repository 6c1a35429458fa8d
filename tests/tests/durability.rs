//! Proves, with `strace` as the witness, that a reply never comes before what it promises: which
//! write was stable, and which sync had begun and ended, between a request and its reply. The
//! names C5, C6 and so on are those of the durability contract. What any server must have done is in
//! `audit.rs`; this is what is special about ours, its economy above all.

use std::io::Write;

use common::proto::{CommandFlags, CommandType, WireError};
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::trace::{self, Event, Trace, Traced, What};

const MIB: u64 = 1 << 20;
const BLOCK: u32 = 4096;

/// A sparse disk, and a server of it under strace.
fn serve(mode: &str, inject: &[&str]) -> Option<(Disk, Traced)> {
    let disk = Disk::sparse(8 * MIB);
    let builder = Server::builder().export(disk.spec()).unix().tcp().args(&["--durability", mode]);
    let traced = trace::start(builder, disk.dir(), inject)?;
    Some((disk, traced))
}

/// The next block of an offset nobody else uses, so that the trace tells requests apart.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 += 64 << 10;
        self.0
    }
}

/// Sends one request and takes its successful reply; returns its cookie.
fn ask(client: &mut Client, command: CommandType, flags: CommandFlags, at: u64) -> u64 {
    let cookie = match command {
        CommandType::WRITE => client.send_write(flags, at, &[0xaa; BLOCK as usize]),
        CommandType::FLUSH => client.send(command, flags, 0, 0),
        _ => client.send(command, flags, at, BLOCK),
    };
    let reply = client.reply();
    assert_eq!((reply.cookie, reply.error), (cookie, WireError::OK), "{command:?}");
    cookie
}

/// Cookies that no other client has used.
fn client_of(traced: &Traced, number: u64) -> Client {
    let mut client = Client::connect(&traced.server.endpoints()[usize::from(number % 2 == 1)]);
    client.cookies_from(1000 * (number + 1));
    client
}

/// `what` was done and then made stable before the reply.
fn settled(trace: &Trace, (request, reply): (Event, Event), what: What) -> bool {
    let done = trace.0.iter().filter(|event| event.what == what && event.began >= request.ended);
    done.into_iter().any(|done| trace.between(*done, reply, What::Sync))
}

#[test]
fn c6_a_plain_write_waits_for_no_sync() {
    for mode in ["writeback", "early-ack"] {
        let Some((_disk, traced)) = serve(mode, &[]) else { return };
        let mut client = client_of(&traced, 0);
        let plain = ask(&mut client, CommandType::WRITE, PLAIN, 4096);
        let trace = traced.finish();
        let (request, reply) = trace.answer(plain);
        let written = trace.between(request, reply, What::Write(4096));
        assert!(written || mode == "early-ack", "{trace:#?}");
        assert!(!trace.between(request, reply, What::Sync), "{mode}: {trace:#?}");
        assert!(!trace.between(request, reply, What::DurableWrite(4096)), "{mode}: {trace:#?}");
    }
}

#[test]
fn c5_flush_is_answered_by_a_sync_that_began_after_it_and_covers_all_connections() {
    let Some((_disk, traced)) = serve("writeback", &[]) else { return };
    let mut offsets = Offsets(0);
    let (mut one, mut other) = (client_of(&traced, 0), client_of(&traced, 1));
    let mut flushes = Vec::new();
    for command in [CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES] {
        ask(&mut one, command, PLAIN, offsets.next());
        flushes.push(ask(&mut other, CommandType::FLUSH, PLAIN, 0));
    }
    let needless = ask(&mut one, CommandType::FLUSH, PLAIN, 0);
    let trace = traced.finish();
    for flush in flushes {
        let (request, reply) = trace.answer(flush);
        assert!(trace.between(request, reply, What::Sync), "flush {flush} in {trace:#?}");
    }
    let (request, reply) = trace.answer(needless);
    assert!(!trace.between(request, reply, What::Sync), "nothing was written: {trace:#?}");
    assert_eq!(trace.count(What::Sync), 3, "and nothing is left for the end: {trace:#?}");
}

#[test]
fn c5_flushes_in_flight_share_syncs_that_cover_what_they_promise() {
    let Some((_disk, traced)) = serve("writeback", &["fdatasync:delay_enter=300ms"]) else { return };
    let mut clients: Vec<Client> = (0..4).map(|number| client_of(&traced, number)).collect();
    let write = ask(&mut clients[0], CommandType::WRITE, PLAIN, 4096);
    let mut flushes = Vec::new();
    for _ in 0..4 {
        for client in &mut clients {
            flushes.push(client.send(CommandType::FLUSH, PLAIN, 0, 0));
        }
    }
    for client in &mut clients {
        while client.outstanding() > 0 {
            assert_eq!(client.reply().error, WireError::OK);
        }
    }
    let trace = traced.finish();
    let (_, written) = trace.answer(write);
    for flush in flushes {
        // What was acknowledged before the FLUSH is the write; a sync that began after it answers all.
        let (_, reply) = trace.answer(flush);
        assert!(trace.between(written, reply, What::Sync), "flush {flush} in {trace:#?}");
    }
    assert!(trace.count(What::Sync) <= 2, "sixteen flushes share two syncs: {trace:#?}");
}

#[test]
fn durable_writes_in_flight_share_syncs() {
    for (mode, flags) in [("writethrough", PLAIN), ("writeback", FUA)] {
        let Some((_disk, traced)) = serve(mode, &["fdatasync:delay_enter=300ms"]) else { return };
        let mut client = client_of(&traced, 0);
        for at in 1..=16 {
            client.send_write(flags, at * MIB / 4, &[0xaa; BLOCK as usize]);
        }
        while client.outstanding() > 0 {
            assert_eq!(client.reply().error, WireError::OK);
        }
        let trace = traced.finish();
        // A few may run at once; the rest share the next one, so that all take two syncs' time.
        let syncs = trace.count(What::Sync);
        assert!(syncs <= 6, "{mode}: sixteen writes take {syncs} syncs: {trace:#?}");
    }
}

#[test]
fn early_ack_stores_what_it_acknowledged_and_then_syncs_before_flush_is_answered() {
    let disk = Disk::sparse(8 * MIB);
    let builder = Server::builder().export(disk.spec()).unix().tcp();
    let builder = builder.args(&["--durability", "early-ack", "--dirty-age", "60"]);
    let Some(traced) = trace::start(builder, disk.dir(), &[]) else { return };
    let (mut one, mut other) = (client_of(&traced, 0), client_of(&traced, 1));
    let mut offsets = Offsets(0);
    let writes: Vec<(u64, u64)> = (0..8)
        .map(|_| {
            let at = offsets.next();
            (ask(&mut one, CommandType::WRITE, PLAIN, at), at)
        })
        .collect();
    let flush = ask(&mut other, CommandType::FLUSH, PLAIN, 0);
    let trace = traced.finish();
    let (flushing, flushed) = trace.answer(flush);
    for (cookie, at) in writes {
        let (request, _) = trace.answer(cookie);
        assert!(settled(&trace, (request, flushed), What::Write(at)), "write at {at}: {trace:#?}");
        assert!(trace.between(flushing, flushed, What::Write(at)), "it waited, to be merged: {trace:#?}");
    }
    assert!(trace.between(flushing, flushed, What::Sync), "{trace:#?}");
}

#[test]
fn unsafe_syncs_nothing_until_the_end() {
    let Some((_disk, traced)) = serve("unsafe", &[]) else { return };
    let mut client = client_of(&traced, 0);
    let commands = [CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES, CommandType::FLUSH];
    let cookies = commands.map(|command| ask(&mut client, command, FUA, 4096));
    let trace = traced.finish();
    let (_, last) = trace.answer(cookies[3]);
    let stable = |event: &&Event| matches!(event.what, What::Sync | What::DurableWrite(_));
    let early = trace.0.iter().filter(stable).filter(|event| event.began < last.began);
    assert_eq!(early.count(), 0, "{trace:#?}");
}

#[test]
fn c9_disc_finishes_and_answers_every_write_that_is_still_outstanding() {
    // Each write takes so long that all of them are outstanding when DISC arrives.
    let Some((disk, traced)) = serve("writeback", &["pwrite64:delay_enter=100ms"]) else { return };
    let mut client = client_of(&traced, 0);
    let mut out = Vec::new();
    for n in 0..64 {
        client.encode(&mut out, CommandType::WRITE, PLAIN, n * u64::from(BLOCK), BLOCK);
        out.extend(pattern(u8::try_from(n).unwrap(), BLOCK as usize));
    }
    client.encode(&mut out, CommandType::DISC, PLAIN, 0, 0);
    client.socket.write_all(&out).unwrap();
    for _ in 0..64 {
        assert_eq!(client.reply().error, WireError::OK);
    }
    assert_eq!(client.socket.until_closed(), b"", "DISC is never answered");
    for (n, block) in disk.content().chunks(BLOCK as usize).take(64).enumerate() {
        assert!(block == pattern(u8::try_from(n).unwrap(), BLOCK as usize), "block {n}");
    }
    assert_eq!(traced.server.terminate().code, Some(0));
}
