//! Proves that no client can hurt the server or its neighbours by what it says or leaves unsaid:
//! silence, half sentences, slow drips, wrong magics, endless options, garbage, and payloads that
//! stop half-way, which must have no effect on the disk.

use std::io::{ErrorKind, Write};
use std::thread;
use std::time::Duration;

use common::option::put_option;
use common::proto::{CommandType, OptionType, ReplyType, WireError};
use tests::client::{Client, FUA, PLAIN, Socket};
use tests::disk::{Disk, pattern};
use tests::haggle::Haggle;
use tests::model::Rng;
use tests::operator::Operator;
use tests::server::{Endpoint, Server};
use tests::{PATIENCE, wait_until};
use vm_tests::Deadline;

/// What a client may have said before it falls silent.
fn beginnings() -> Vec<Vec<u8>> {
    let mut go = vec![0, 0, 0, 3];
    put_option(&mut go, OptionType::GO, &[0; 6]);
    let mut endless = vec![0, 0, 0, 3];
    put_option(&mut endless, OptionType(77), &[0; 1000]);
    endless[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let list = {
        let mut list = vec![0, 0, 0, 3];
        put_option(&mut list, OptionType::LIST, b"");
        list
    };
    vec![
        vec![],
        vec![0, 0],
        vec![0, 0, 0, 3],
        go[..10].to_vec(),
        go[..20].to_vec(),
        go[..go.len() - 1].to_vec(),
        endless,
        list,
    ]
}

#[test]
fn silent_clients_are_dropped_and_idle_ones_are_not() {
    let server =
        Server::builder().export("memory:1M").unix().tcp().args(&["--handshake-timeout", "0.5"]).start();
    for endpoint in server.endpoints() {
        let mut idle = Client::connect(endpoint);
        let mut sockets: Vec<Socket> = Vec::new();
        for beginning in beginnings() {
            let mut socket = Socket::connect(endpoint).unwrap();
            socket.write_all(&beginning).unwrap();
            sockets.push(socket);
        }
        for mut socket in sockets {
            assert!(socket.until_closed().starts_with(b"NBDMAGICIHAVEOPT"));
        }
        assert_eq!(idle.flush(), WireError::OK, "who has chosen an export may be silent for ever");
    }
}

#[test]
fn a_slow_drip_is_as_bad_as_silence() {
    let server =
        Server::builder().export("memory:1M").unix().tcp().args(&["--handshake-timeout", "1"]).start();
    for endpoint in server.endpoints() {
        let mut socket = Socket::connect(endpoint).unwrap();
        let mut option = vec![0, 0, 0, 3];
        put_option(&mut option, OptionType(77), &[0; 100_000]);
        let deadline = Deadline::after(PATIENCE);
        for byte in option {
            if socket.write_all(&[byte]).is_err() {
                break;
            }
            assert!(!deadline.has_passed(), "the drip goes on");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(Client::connect(endpoint).flush(), WireError::OK);
    }
}

#[test]
fn wrong_magics_end_the_connection() {
    let server = Server::builder().export("memory:1M").unix().tcp().start();
    for endpoint in server.endpoints() {
        let mut haggle = Haggle::modern(endpoint);
        haggle.socket.write_all(b"IHAVEOPX\0\0\0\x03\0\0\0\0").unwrap();
        assert_eq!(haggle.socket.until_closed(), b"");

        let mut client = Client::connect(endpoint);
        client.send(CommandType::FLUSH, PLAIN, 0, 0);
        assert_eq!(client.reply().error, WireError::OK);
        client.socket.write_all(b"\x25\x60\x95\x14\0\0\0\x03COOKIE78\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
        assert_eq!(client.socket.until_closed(), b"");
        // A reply's magic is no request's.
        let mut client = Client::connect(endpoint);
        client.socket.write_all(b"\x67\x44\x66\x98\0\0\0\x03COOKIE78\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
        assert_eq!(client.socket.until_closed(), b"");
    }
    assert!(server.logged("broke the protocol").contains("magic"));
}

#[test]
fn options_of_any_length_cost_no_memory() {
    let server = Server::builder().export("memory:1M").unix().tcp().start();
    let before = server.status("VmHWM");
    for endpoint in server.endpoints() {
        let mut haggle = Haggle::modern(endpoint);
        for (option, answer) in [
            (OptionType(77), ReplyType::ERR_UNSUP),
            (OptionType::LIST, ReplyType::ERR_TOO_BIG),
            (OptionType::GO, ReplyType::ERR_TOO_BIG),
        ] {
            assert_eq!(haggle.ask(option, &vec![0xff; 16 << 20]), (vec![], answer));
        }
        assert_eq!(haggle.ask(OptionType::LIST, b"").1, ReplyType::ACK);
        let mut haggle = Haggle::modern(endpoint);
        haggle.say(OptionType::EXPORT_NAME, &[b'x'; 5000]);
        assert_eq!(haggle.socket.until_closed(), b"");
    }
    let grown = server.status("VmHWM") - before;
    assert!(grown < 8 << 10, "it grew by {grown} KiB");
}

#[test]
fn who_haggles_without_end_is_dropped() {
    let server = Server::builder().export("memory:1M").unix().tcp().start();
    for endpoint in server.endpoints() {
        let mut haggle = Haggle::modern(endpoint);
        let mut answered = 0;
        let mut option = Vec::new();
        put_option(&mut option, OptionType(77), b"");
        while haggle.socket.write_all(&option).is_ok() && haggle.hear(OptionType(77)).is_ok() {
            answered += 1;
            assert!(answered < 100_000, "it haggles without end");
        }
        assert_eq!(Client::connect(endpoint).flush(), WireError::OK);
    }
}

#[test]
fn a_write_that_was_not_received_whole_has_no_effect() {
    const LEN: usize = 256 << 10;
    let before = pattern(1, 4 * LEN);
    let disk = Disk::holding(&before);
    let operator = Operator::beside(&disk);
    let server = operator.of(Server::builder().export(disk.spec()).unix().tcp()).start();
    for endpoint in server.endpoints() {
        for sent in [0, 1, 4095, 4096, LEN / 2, LEN - 4096, LEN - 1] {
            let mut client = Client::connect(endpoint);
            let mut out = Vec::new();
            client.encode(&mut out, CommandType::WRITE, FUA, 4096, u32::try_from(LEN).unwrap());
            out.extend(pattern(200, sent));
            client.socket.write_all(&out).unwrap();
            drop(client);
        }
        let mut client = Client::connect(endpoint);
        client.socket.write_all(b"\x25\x60\x95\x13\0\0\0\x01").unwrap();
        drop(client);
    }
    wait_until("the server to notice", || operator.status()["counters"]["open"] == 0);
    assert!(server.log().contains("the connection broke"));
    assert_eq!(server.terminate().code, Some(0));
    assert!(disk.content() == before, "the disk is as it was");
}

#[test]
fn clients_that_vanish_with_requests_in_flight_hurt_nobody() {
    let server = Server::builder().export("memory:64M").unix().tcp().start();
    let mut witness = Client::connect(server.endpoint());
    for round in 0..40 {
        let mut client = Client::connect(&server.endpoints()[round % 2]);
        for n in 0..20 {
            client.send(CommandType::READ, PLAIN, n << 20, 1 << 20);
        }
        client.send_write(PLAIN, 0, &[1; 4096]);
        if round % 3 == 0 {
            let _some = client.socket.receive(100_000).unwrap();
        }
        drop(client);
        assert_eq!(witness.flush(), WireError::OK);
    }
    let exit = server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(!exit.log.contains("panicked"), "{}", exit.log);
}

/// Says something random, half of the time after a proper beginning.
fn babble(endpoint: &Endpoint, rng: &mut Rng) {
    let mut garbage: Vec<u8> = (0..rng.below(3000)).map(|_| rng.byte()).collect();
    let mut socket = match rng.below(3) {
        0 => Socket::connect(endpoint).expect("the server takes connections"),
        1 => {
            let beginnings = beginnings();
            let chosen = usize::try_from(rng.below(beginnings.len() as u64)).expect("there are few");
            garbage.splice(0..0, beginnings[chosen].clone());
            Socket::connect(endpoint).expect("the server takes connections")
        }
        _ => {
            let mut header = b"\x25\x60\x95\x13\0\0\0".to_vec();
            header.push(u8::try_from(rng.below(10)).expect("a digit"));
            garbage.splice(0..0, header);
            Client::connect(endpoint).socket
        }
    };
    let _may_close_meanwhile = socket.write_all(&garbage);
    let _may_close_meanwhile = socket.close_sending();
    socket.patience(Duration::from_millis(200)).expect("a socket takes a time limit");
    match socket.receive(1 << 20) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => panic!("{error}"),
        _ => {}
    }
}

#[test]
fn garbage_hurts_nobody() {
    let disk = Disk::sparse(1 << 20);
    let server = Server::builder()
        .export(disk.spec())
        .args(&["--read-only", "--handshake-timeout", "2"])
        .unix()
        .tcp()
        .start();
    let mut rng = Rng::seeded();
    let mut witness = Client::connect(server.endpoint());
    for round in 0..200 {
        babble(&server.endpoints()[round % 2], &mut rng);
        assert_eq!(witness.flush(), WireError::OK);
    }
    let exit = server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(!exit.log.contains("panicked"), "{}", exit.log);
}
