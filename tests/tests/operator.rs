//! Proves what an operator can do with a running server: see how its exports are, change a mode
//! under load without losing a byte or a connection, drain, clear a poison; and that the epoch
//! changes exactly when acknowledged data may have been lost.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::proto::WireError;
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::model::Rng;
use tests::operator::{Operator, serve};
use tests::server::{Endpoint, Server};
use tests::trace;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const MODES: [&str; 4] = ["writethrough", "writeback", "early-ack", "unsafe"];

#[test]
fn an_operator_sees_how_exports_are() {
    let disk = Disk::sparse(MIB);
    let operator = Operator::beside(&disk);
    let builder = Server::builder().export(format!("a={}", disk.path().display())).export("b=memory:1M");
    let server =
        operator.of(builder.unix().args(&["--durability", "early-ack", "--dirty-age", "60"])).start();
    let mut client = Client::try_connect(server.endpoint(), "a").unwrap();
    assert_eq!(client.write(PLAIN, 0, &[1; BLOCK]), WireError::OK);

    let text = operator.order(&["list"]);
    assert!(text.contains("a: early-ack, 1048576 bytes") && text.contains("b: early-ack"), "{text}");
    assert!(text.contains("4096 bytes, 4096 of them in the early-ack cache"), "{text}");
    let a = operator.status();
    assert_eq!((&a["name"], &a["mode"], &a["size_bytes"]), (&"a".into(), &"early-ack".into(), &MIB.into()));
    assert_eq!((&a["dirty_bytes"], &a["unstable_bytes"]), (&BLOCK.into(), &BLOCK.into()));
    assert_eq!((&a["counters"]["open"], &a["counters"]["writes"]), (&1.into(), &1.into()));
    assert_eq!(a["epoch"].as_str().map(str::len), Some(16));
    assert!(a["poison"].is_null());

    operator.order(&["drain", "--export", "a"]);
    let a = operator.status();
    assert_eq!((&a["dirty_bytes"], &a["unstable_bytes"]), (&0.into(), &0.into()));
    client.disconnect();
}

#[test]
fn mistakes_get_one_clear_sentence() {
    let disk = Disk::sparse(MIB);
    let operator = Operator::beside(&disk);
    let builder = Server::builder().export("a=memory:1M").export("b=memory:1M").unix();
    let server = operator.of(builder).start();
    for (words, sentence) in [
        (&["mode", "unsafe"][..], "there are several exports"),
        (&["mode", "unsafe", "--export", "c"], "there is no export named \"c\""),
        (&["clear-poison", "--export", "a"], "there is no poison to clear"),
        (&["mode", "none", "--export", "a"], "invalid value 'none'"),
        (&["frobnicate"], "unrecognized subcommand"),
    ] {
        let done = operator.say(words);
        assert!(!done.status.success() && done.stderr.contains(sentence), "{words:?}: {}", done.stderr);
    }
    let mode = operator.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "for this user only");
    assert_eq!(server.terminate().code, Some(0));
    let done = operator.say(&["list"]);
    assert!(!done.status.success() && done.stderr.contains("no server answers at"), "{}", done.stderr);
}

#[test]
fn what_is_no_request_is_refused_and_costs_nothing() {
    let disk = Disk::sparse(MIB);
    let (_server, operator) = serve(&disk, "writeback");
    let mut socket = UnixStream::connect(operator.socket()).unwrap();
    let mut said = BufReader::new(socket.try_clone().unwrap());
    for line in ["", "{", "\u{fffd}", r#"{"command":"mode","mode":"none"}"#] {
        writeln!(socket, "{line}").unwrap();
        let mut answer = String::new();
        said.read_line(&mut answer).unwrap();
        assert!(answer.starts_with(r#"{"error":"#), "{line}: {answer}");
    }
    // Words without end are not kept.
    let flood = vec![b' '; 1 << 20];
    let _server_may_hang_up = socket.write_all(&flood);
    assert_eq!(operator.status()["mode"], "writeback");
}

/// Writes blocks of its own, reads them back at random and flushes, until told to stop; returns
/// what each block holds.
fn live(endpoint: &Endpoint, first: u64, blocks: u64, mut rng: Rng, stop: &AtomicBool) -> Vec<(u64, u8)> {
    let mut client = Client::connect(endpoint);
    let mut versions = vec![0_u8; usize::try_from(blocks).expect("few")];
    while !stop.load(Ordering::Relaxed) {
        let block = usize::try_from(rng.below(blocks)).expect("few");
        let at = (first + block as u64) * BLOCK as u64;
        match rng.below(8) {
            0 => assert_eq!(client.flush(), WireError::OK),
            1 if versions[block] > 0 => {
                let expected = pattern(versions[block], BLOCK);
                assert!(client.read(at, 4096).as_deref() == Ok(&expected), "block {block}");
            }
            dice => {
                versions[block] = versions[block] % 250 + 1;
                let flags = if dice == 2 { FUA } else { PLAIN };
                assert_eq!(client.write(flags, at, &pattern(versions[block], BLOCK)), WireError::OK);
            }
        }
    }
    client.disconnect();
    (first..).zip(versions).collect()
}

#[test]
fn changing_the_mode_under_load_loses_nothing_and_drops_no_connection() {
    let disk = Disk::sparse(4 * MIB);
    let (server, operator) = serve(&disk, "early-ack");
    let mut rng = Rng::seeded();
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let lives: Vec<_> = (0..4)
            .map(|number| {
                let (rng, stop) = (rng.fork(), &stop);
                let endpoint = &server.endpoints()[number % 2];
                scope.spawn(move || live(endpoint, number as u64 * 64, 64, rng, stop))
            })
            .collect();
        let mut last = "early-ack";
        for _ in 0..40 {
            let mode = MODES[usize::try_from(rng.below(4)).unwrap()];
            operator.order(&["mode", mode]);
            assert_eq!(operator.status()["mode"], mode);
            last = mode;
        }
        stop.store(true, Ordering::Relaxed);
        println!("ended in {last}");
        lives.into_iter().flat_map(|life| life.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(operator.status()["counters"]["connections"], 4, "each life had one connection");
    assert_eq!(operator.status()["counters"]["errors"], 0);
    assert_eq!(server.terminate().code, Some(0));
    let content = disk.content();
    for (block, version) in written.into_iter().filter(|(_, version)| *version > 0) {
        let at = usize::try_from(block).unwrap() * BLOCK;
        assert!(content[at..at + BLOCK] == pattern(version, BLOCK), "block {block}");
    }
}

#[test]
fn a_change_to_a_safer_mode_syncs_first() {
    let disk = Disk::sparse(MIB);
    let operator = Operator::beside(&disk);
    for mode in ["early-ack", "unsafe"] {
        let builder = Server::builder().export(disk.spec()).unix().tcp();
        let builder = operator.of(builder.args(&["--durability", mode, "--dirty-age", "60"]));
        let Some(traced) = trace::start(builder, disk.dir(), &["fdatasync:error=EIO"]) else { return };
        let mut client = Client::connect(traced.server.endpoint());
        assert_eq!(client.write(PLAIN, 0, &[1; BLOCK]), WireError::OK);
        let refused = operator.say(&["mode", "writethrough"]);
        assert!(refused.stderr.contains(&format!("the mode stays {mode}")), "{}", refused.stderr);
        assert_eq!(operator.status()["mode"], mode);
        traced.release();
        assert_eq!(traced.server.terminate().code, Some(1));
    }
}

#[test]
fn a_poison_is_seen_changes_the_epoch_and_can_be_cleared() {
    for mode in ["writethrough", "writeback", "early-ack"] {
        let disk = Disk::sparse(MIB);
        let operator = Operator::beside(&disk);
        let builder =
            operator.of(Server::builder().export(disk.spec()).unix().tcp().args(&["--durability", mode]));
        let Some(traced) = trace::start(builder, disk.dir(), &["fdatasync,pwritev2:error=EIO"]) else {
            return;
        };
        let mut client = Client::connect(traced.server.endpoint());
        let epoch = operator.epoch();
        let written = client.write(PLAIN, 0, &[1; BLOCK]);
        assert_eq!(written == WireError::OK, mode != "writethrough");
        assert_eq!(client.flush(), WireError::EIO, "{mode}");
        traced.release();
        let poisoned = operator.status();
        assert!(poisoned["poison"].as_str().is_some_and(|text| text.contains("may be lost")), "{poisoned}");
        assert_ne!(operator.epoch(), epoch, "{mode}");
        assert!(operator.order(&["list"]).contains("POISONED"));

        operator.order(&["clear-poison"]);
        assert_eq!(client.write(PLAIN, 0, &[2; BLOCK]), WireError::OK, "{mode}: the old connection works");
        assert_eq!(client.flush(), WireError::OK, "{mode}");
        assert!(operator.status()["poison"].is_null());
        let lost = operator.epoch();
        assert_eq!(traced.server.terminate().code, Some(0), "{mode}: and the end is a good one");

        let (_server, operator) = serve(&disk, mode);
        assert_eq!(operator.epoch(), lost, "{mode}: nothing more was lost");
    }
}

#[test]
fn the_epoch_tells_what_a_restart_has_lost() {
    for mode in MODES {
        let disk = Disk::sparse(MIB);
        let (server, operator) = serve(&disk, mode);
        if server.log().contains("no place for the epoch") {
            println!("SKIP: temporary files have no extended attributes here");
            return;
        }
        let first = operator.epoch();
        let mut client = Client::connect(server.endpoint());
        assert_eq!(client.write(PLAIN, 0, &[1; BLOCK]), WireError::OK);
        assert_eq!(server.terminate().code, Some(0));

        let (server, operator) = serve(&disk, mode);
        assert_eq!(operator.epoch(), first, "{mode}: a stop in good order loses nothing");
        let mut client = Client::connect(server.endpoint());
        assert_eq!(client.write(PLAIN, 0, &[2; BLOCK]), WireError::OK);
        server.kill();

        let (server, operator) = serve(&disk, mode);
        let changed = operator.epoch() != first;
        assert_eq!(changed, mode == "early-ack", "{mode}: a kill loses what the server itself held");
        server.kill();
        let (_server, again) = serve(&disk, mode);
        assert_eq!(again.epoch() != first, changed, "{mode}: one that held nothing loses nothing");
    }
}

#[test]
fn memory_is_lost_with_its_server_and_what_is_never_written_cannot_be_lost() {
    let disk = Disk::holding(&pattern(1, BLOCK));
    let operator = Operator::beside(&disk);
    let epoch = |spec: &str, args: &[&str]| {
        let builder = Server::builder().export(spec).unix().args(args);
        let server = operator.of(builder).start();
        let epoch = operator.status()["epoch"].clone();
        assert_eq!(server.terminate().code, Some(0));
        epoch
    };
    assert_ne!(epoch("memory:1M", &[]), epoch("memory:1M", &[]));
    assert_eq!(epoch("null:1M", &[]), epoch("null:1M", &[]));
    assert!(epoch(disk.path().to_str().unwrap(), &["--read-only"]).is_null());
}
