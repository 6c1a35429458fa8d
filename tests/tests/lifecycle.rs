//! Proves how the server starts and ends: SIGTERM loses nothing that was acknowledged, SIGKILL
//! leaves nothing that stops the next start, what is in use is refused, and every mistake on the
//! command line gets one clear sentence and a failing exit code.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use common::proto::{CommandType, WireError};
use nix::sys::signal::Signal;
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::server::{Builder, Endpoint, Exit, Server};
use tests::wait_until;

const BLOCK: usize = 32 << 10;
const BLOCKS: u64 = 256;

/// Writes numbered blocks, eight in flight, until the server closes; returns how often each
/// place was written with success, and the most that can be there.
fn write_until_closed(mut client: Client, first: u64) -> Vec<(u64, u8, u8)> {
    let mut state = vec![(0_u8, 0_u8); (BLOCKS / 4) as usize];
    let mut places = std::collections::HashMap::new();
    let mut next = 0;
    loop {
        if client.outstanding() < 8 {
            let place = next % state.len();
            next += 1;
            let version = state[place].1.wrapping_add(1);
            if version == u8::MAX {
                break;
            }
            state[place].1 = version;
            let mut out = Vec::new();
            let at = (first + place as u64) * BLOCK as u64;
            let len = u32::try_from(BLOCK).expect("a block is short");
            let cookie = client.encode(&mut out, CommandType::WRITE, PLAIN, at, len);
            out.extend(pattern(version, BLOCK));
            places.insert(cookie, (place, version));
            if std::io::Write::write_all(&mut client.socket, &out).is_ok() {
                continue;
            }
        }
        let Ok(reply) = client.try_reply() else { break };
        assert_eq!(reply.error, WireError::OK, "success until the server closes");
        let (place, version) = places[&reply.cookie];
        state[place].0 = state[place].0.max(version);
    }
    (first..).zip(state).map(|(place, (acked, sent))| (place, acked, sent)).collect()
}

#[test]
fn sigterm_under_load_keeps_whatever_was_acknowledged() {
    for mode in ["writeback", "early-ack", "unsafe"] {
        terminate_under_load(mode);
    }
}

fn terminate_under_load(mode: &str) {
    let disk = Disk::sparse(BLOCKS * BLOCK as u64);
    let server = Server::builder().export(disk.spec()).unix().tcp().args(&["--durability", mode]).start();
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let client = Client::connect(&server.endpoints()[n % 2]);
            thread::spawn(move || write_until_closed(client, n as u64 * BLOCKS / 4))
        })
        .collect();
    wait_until("some load", || disk.content().chunks(BLOCK).filter(|block| block[0] != 0).count() > 20);
    let exit = server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    let content = disk.content();
    let mut acknowledged = 0;
    for (place, acked, sent) in writers.into_iter().flat_map(|writer| writer.join().expect("a writer")) {
        let place = usize::try_from(place).expect("places are few");
        let found = &content[place * BLOCK..][..BLOCK];
        let allowed = |version| if version == 0 { vec![0; BLOCK] } else { pattern(version, BLOCK) };
        assert!((acked..=sent).any(|version| found == allowed(version)), "block {place}: {acked}..={sent}");
        acknowledged += u64::from(acked);
    }
    assert!(acknowledged > 20, "there was load");
    assert!(exit.log.contains("closed") && exit.log.contains("written_bytes="), "{}", exit.log);
}

#[test]
fn sigterm_ends_idle_and_silent_connections_at_once() {
    let server = Server::builder().export("memory:1M").unix().tcp().start();
    let silent = tests::client::Socket::connect(server.endpoint()).unwrap();
    let mut idle = Client::connect(server.endpoint());
    let socket = match &server.endpoints()[1] {
        Endpoint::Unix(path) => path.clone(),
        Endpoint::Tcp(_) | Endpoint::Tls(..) => panic!("the second listener is the Unix socket"),
    };
    assert!(socket.exists());
    let exit = server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert_eq!(idle.socket.until_closed(), b"");
    assert!(!socket.exists(), "a server that ends removes its socket");
    drop(silent);
}

#[test]
fn a_half_received_write_is_dropped_at_sigterm() {
    let disk = Disk::sparse(1 << 20);
    let server = Server::of(disk.spec());
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.write(PLAIN, 0, &[7; 4096]), WireError::OK);
    let mut out = Vec::new();
    client.encode(&mut out, CommandType::WRITE, PLAIN, 4096, 8192);
    out.extend_from_slice(&[8; 8191]);
    std::io::Write::write_all(&mut client.socket, &out).unwrap();
    assert_eq!(server.terminate().code, Some(0));
    let content = disk.content();
    assert_eq!(content[..4096], [7; 4096]);
    assert!(content[4096..].iter().all(|byte| *byte == 0));
}

#[test]
fn sigint_ends_it_as_sigterm_does() {
    let server = Server::of("memory:1M");
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code, Some(0));
}

#[test]
fn after_sigkill_it_starts_again_on_the_same_socket_and_file() {
    let disk = Disk::sparse(1 << 20);
    let socket = disk.dir().join("sock");
    for round in 1..4 {
        let server = Server::builder().export(disk.spec()).unix_at(&socket).start();
        let mut client = Client::connect(server.endpoint());
        if round > 1 {
            assert_eq!(client.read(0, 4096).unwrap(), pattern(round - 1, 4096));
        }
        assert_eq!(client.write(PLAIN, 0, &pattern(round, 4096)), WireError::OK);
        server.kill();
        assert!(socket.exists(), "a killed server cannot clean up");
    }
}

#[test]
fn sigkill_loses_nothing_that_was_flushed_or_fua() {
    for mode in ["writethrough", "writeback", "early-ack"] {
        let disk = Disk::sparse(1 << 20);
        let server = Server::builder().export(disk.spec()).unix().args(&["--durability", mode]).start();
        let mut client = Client::connect(server.endpoint());
        assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
        assert_eq!(client.write(FUA, 8192, &[2; 4096]), WireError::OK);
        assert_eq!(Client::connect(server.endpoint()).flush(), WireError::OK);
        assert_eq!(client.write(PLAIN, 0, &[3; 4096]), WireError::OK);
        assert_eq!(client.write(FUA, 0, &[4; 1000]), WireError::OK);
        assert_eq!(client.write(PLAIN, 16384, &[5; 4096]), WireError::OK);
        server.kill();
        let content = disk.content();
        assert_eq!(content[..1000], [4; 1000], "{mode}: FUA");
        assert!(content[1000..4096].iter().all(|byte| [1, 3].contains(byte)), "{mode}: flushed, or newer");
        assert_eq!(content[8192..12288], [2; 4096], "{mode}: FUA");
        let last = &content[16384..20480];
        let kept = *last == [5; 4096];
        assert!(kept || mode == "early-ack" && *last == [0; 4096], "{mode}: acknowledged");
    }
}

#[test]
fn what_another_server_uses_is_refused() {
    let disk = Disk::sparse(1 << 20);
    let first = Server::builder().export(disk.spec()).unix().tcp().start();
    refuses(Server::builder().export(disk.spec()).unix(), "(nbd-server) ");
    refuses(Server::builder().export(disk.spec()).unix().args(&["--read-only"]), "(nbd-server) ");
    for endpoint in first.endpoints() {
        match endpoint {
            Endpoint::Unix(path) => {
                refuses(
                    Server::builder().export("memory:1M").unix_at(path),
                    "another server is listening there",
                );
            }
            Endpoint::Tls(..) => unreachable!("there is no TLS"),
            Endpoint::Tcp(address) => {
                let taken = Server::builder().export("memory:1M").args(&["--listen", &address.to_string()]);
                refuses(taken, "the port is taken");
            }
        }
    }
    // The first one has not noticed any of that.
    for endpoint in first.endpoints() {
        assert_eq!(Client::connect(endpoint).write(FUA, 0, &[1]), WireError::OK);
    }
}

#[test]
fn readers_may_share_a_file() {
    let disk = Disk::holding(&pattern(5, 4096));
    let serve = || Server::builder().export(disk.spec()).unix().args(&["--read-only"]).start();
    let servers = [serve(), serve()];
    for server in &servers {
        assert_eq!(Client::connect(server.endpoint()).read(0, 4096).unwrap(), pattern(5, 4096));
    }
    refuses(Server::builder().export(disk.spec()).unix(), "(nbd-server) ");
}

#[test]
fn the_socket_of_something_else_is_not_replaced() {
    let disk = Disk::sparse(4096);
    let living = UnixListener::bind(disk.dir().join("living")).unwrap();
    refuses(
        Server::builder().export("memory:1M").unix_at(&disk.dir().join("living")),
        "another server is listening",
    );
    refuses(Server::builder().export("memory:1M").unix_at(disk.path()), "it exists and is not a socket");
    assert!(disk.path().exists());
    drop(living);
}

/// It exits with a failure and says so in one line that holds `sentence`.
fn refuses(builder: Builder, sentence: &str) -> Exit {
    let exit = builder.refused();
    assert!(!matches!(exit.code, Some(0) | None), "{exit:?}");
    let said: Vec<&str> = exit.log.lines().collect();
    assert!(said.len() == 1 && said[0].contains(sentence), "wanted one line with {sentence:?}: {exit:?}");
    assert!(said[0].starts_with("nbd-server: "), "{exit:?}");
    assert_eq!(exit.stdout, "", "standard output is for URIs");
    exit
}

#[test]
fn mistakes_get_one_clear_sentence() {
    let disk = Disk::sparse(4096);
    let path = |name: &str| disk.dir().join(name).to_str().unwrap().to_owned();
    fs::create_dir(disk.dir().join("directory")).unwrap();
    let _fifo = UnixListener::bind(disk.dir().join("socket")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&[&path("missing.img")], "missing.img: No such file or directory"),
        (&[&path("directory")], "is a directory; give a regular file or a block device"),
        (&[&path("socket")], "is neither a regular file nor a block device"),
        (&["/dev/null"], "is neither a regular file nor a block device"),
        (&["memory:1000"], "the size must be a multiple of 512 bytes; 1024 is the nearest above"),
        (&["null:511"], "the size must be a multiple of 512 bytes; 512 is the nearest above"),
        (&["memory:0"], "the size is zero"),
        (&["memory:big"], "is no size"),
        (&["memory:"], "is no size"),
        (&["memory:1M", "memory:1M"], "only one export can go without a name"),
        (&["a=memory:1M", "a=null:1M"], "two exports are named \"a\""),
        (&["--durability", "early-ack", "--dirty-max", "1K", "memory:1M"], "is larger than --dirty-max"),
        (&["--listen", "localhost", "memory:1M"], "not an address"),
        (&["--listen", "127.0.0.1:99999", "memory:1M"], "not an address"),
        (&["--listen", &taken, "memory:1M"], "the port is taken"),
        (&["--listen", "203.0.113.1:10809", "memory:1M"], "cannot listen on 203.0.113.1:10809"),
        (&["--unix", &path("no/such/sock"), "memory:1M"], "no/such/sock: No such file or directory"),
    ];
    for (words, sentence) in cases {
        let default_listener = !words.iter().any(|word| ["--listen", "--unix"].contains(word));
        let builder = Server::builder().args(words);
        let builder = if default_listener { builder.unix() } else { builder };
        refuses(builder, sentence);
    }
}

#[test]
fn words_it_does_not_know_are_explained() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["required", "Usage:"]),
        (
            &["--durability", "fast", "memory:1M"],
            &["fast", "writethrough", "writeback", "early-ack", "unsafe"],
        ),
        (&["--frobnicate", "memory:1M"], &["--frobnicate", "Usage:"]),
        (&["--workers", "0", "memory:1M"], &["--workers", "0"]),
        (&["--max-connections", "0", "memory:1M"], &["--max-connections"]),
        (&["--handshake-timeout", "soon", "memory:1M"], &["soon", "number of seconds"]),
        (&["--handshake-timeout=-1", "memory:1M"], &["--handshake-timeout"]),
        (&["--max-memory", "lots", "memory:1M"], &["lots", "512M or 1G"]),
    ];
    for (words, hints) in cases {
        let exit = Server::builder().args(words).refused();
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(2), ""), "{exit:?}");
        for hint in *hints {
            assert!(exit.log.contains(hint), "{words:?} wants {hint:?}: {}", exit.log);
        }
    }
}

#[test]
fn help_teaches_and_version_tells() {
    let help = Server::builder().args(&["--help"]).refused();
    assert_eq!(help.code, Some(0));
    for word in ["--listen", "--unix", "--durability", "writethrough", "Examples:", "memory:SIZE", "SIGTERM"]
    {
        assert!(help.stdout.contains(word), "{word}: {}", help.stdout);
    }
    let version = Server::builder().args(&["--version"]).refused();
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.starts_with("nbd-server ") && version.stdout.lines().count() == 1);
}

#[test]
fn no_socket_takes_the_place_of_something_else() {
    let disk = Disk::holding(&[7; 4096]);
    let precious = disk.path().to_str().expect("temporary paths are text");
    let record = disk.dir().join("recording").to_str().expect("temporary paths are text").to_owned();
    for args in
        [&["--record", &record, "--marks", precious][..], &["--admin", precious], &["--unix", precious]]
    {
        let refused = Server::builder().export("memory:1M").unix().args(args).refused();
        assert_eq!(refused.code, Some(1), "{args:?}");
        assert!(refused.log.contains("it exists and is not a socket"), "{args:?}: {}", refused.log);
        assert!(disk.content() == [7; 4096], "{args:?}");
    }
}

#[test]
fn sigusr1_logs_the_counters_and_serves_on() {
    let server = Server::builder().export("memory:1M").unix().args(&["--log-format", "json"]).start();
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.write(FUA, 0, &[1; 4096]), WireError::OK);
    assert_eq!(client.ask(CommandType::TRIM, PLAIN, 0, 4096), WireError::OK);
    assert_eq!(client.ask(CommandType::WRITE_ZEROES, PLAIN, 0, 4096), WireError::OK);
    assert_eq!(client.flush(), WireError::OK);
    assert!(client.read(1 << 20, 1).is_err());
    client.read(0, 512).unwrap();
    server.signal(Signal::SIGUSR1);
    let line: serde_json::Value = serde_json::from_str(&server.logged("counters")).unwrap();
    for (name, count) in [
        ("connections", 1),
        ("open", 1),
        ("reads", 1),
        ("read_bytes", 512),
        ("writes", 1),
        ("written_bytes", 4096),
        ("flushes", 1),
        ("fua", 1),
        ("trims", 1),
        ("zeroes", 1),
        ("statuses", 0),
        ("caches", 0),
        ("errors", 1),
    ] {
        assert_eq!(line["fields"][name], count, "{name}");
    }
    assert_eq!(client.flush(), WireError::OK);
}

#[test]
fn a_client_that_fetches_no_replies_holds_up_the_end_only_for_so_long() {
    let server = Server::builder().export("memory:64M").unix().args(&["--shutdown-timeout", "0.5"]).start();
    let mut client = Client::connect(server.endpoint());
    for _ in 0..4 {
        client.send(CommandType::READ, PLAIN, 0, 16 << 20);
    }
    client.socket.patience(Duration::from_secs(5)).unwrap();
    let _first_bytes = client.socket.receive(16).unwrap();
    let exit = server.terminate();
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.log.contains("--shutdown-timeout"), "{exit:?}");
}
