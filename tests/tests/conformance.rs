//! Proves that the server keeps the protocol where others are known to break it: negotiation,
//! errors, refused payloads, the last byte of odd sizes, half-closed and departing clients. Every
//! test runs over a Unix socket, over TCP and, where what it does can be encrypted, over TLS.

use std::fs::OpenOptions;
use std::io::Write;

use common::handshake::context::ReplyStyle;
use common::option::Info;
use common::proto::{ChunkType, ClientFlags, CommandFlags, CommandType, OptionType, ReplyType};
use common::proto::{PAYLOAD_MAX, PAYLOAD_TAKEN_MAX, TransmissionFlags, WireError};
use common::reply::decode_error;
use tests::chunked::Chunked;
use tests::client::{Client, FUA, PLAIN, Socket};
use tests::disk::{Disk, pattern};
use tests::haggle::Haggle;
use tests::pki::Authority;
use tests::server::{Endpoint, Server};

const MIB: u64 = 1 << 20;

/// Over a Unix socket, TCP and TLS.
fn everywhere(spec: &str, args: &[&str], test: impl Fn(&Endpoint)) {
    in_the_clear(spec, args, &test);
    let authority = Authority::new();
    let server = Server::builder().export(spec).args(args).tls(&authority).tcp().start();
    test(&server.endpoint().encrypted(&authority));
}

/// Over a Unix socket and TCP.
fn in_the_clear(spec: &str, args: &[&str], test: impl Fn(&Endpoint)) {
    let server = Server::builder().export(spec).args(args).unix().tcp().start();
    assert_eq!(server.endpoints().len(), 2);
    server.endpoints().iter().for_each(test);
}

#[test]
fn info_and_go_agree_and_describe_the_export_truly() {
    everywhere("disk=memory:1M", &[], |to| {
        let mut haggle = Haggle::modern(to);
        let told = haggle.ask_about(OptionType::INFO, "disk");
        assert_eq!(told, haggle.ask_about(OptionType::GO, "disk"));
        let mut sizes_told = false;
        for piece in &told.0 {
            match Info::decode(piece).unwrap() {
                Info::Export { size, flags } => {
                    assert_eq!(size, MIB);
                    let flush_and_fua = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA;
                    assert!(flags.contains(TransmissionFlags::HAS_FLAGS | flush_and_fua), "{flags:?}");
                    assert!(flags.contains(TransmissionFlags::CAN_MULTI_CONN), "{flags:?}");
                    let others = TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
                    assert_eq!(flags.without(others), flags, "what simple replies cannot do");
                }
                Info::Name(name) => assert_eq!(name, "disk"),
                Info::Description(text) => {
                    assert!(text.starts_with("durability=writeback epoch="), "{text}");
                }
                Info::BlockSizes(sizes) => {
                    assert!(sizes.are_valid() && sizes.minimum == 1, "{sizes:?}");
                    sizes_told = true;
                }
                Info::Other(other) => panic!("nobody asked for {other:?}"),
            }
        }
        assert!(sizes_told && told.0.len() == 4 && told.1 == ReplyType::ACK);
    });
}

#[test]
fn options_it_does_not_take_are_answered_in_step() {
    in_the_clear("disk=memory:1M", &[], |to| {
        let mut haggle = Haggle::modern(to);
        let error_of = |(pieces, reply): (Vec<Vec<u8>>, ReplyType)| {
            assert!(pieces.is_empty());
            reply
        };
        for option in [4, 5, 12, 99, u32::MAX].map(OptionType) {
            for len in [0, 1, 5000, 100_000] {
                let reply = error_of(haggle.ask(option, &vec![7; len]));
                assert_eq!(reply, ReplyType::ERR_UNSUP, "{option:?} with {len} bytes");
            }
        }
        assert_eq!(error_of(haggle.ask(OptionType::LIST, b"x")), ReplyType::ERR_INVALID);
        for inner in [1, 5, 0x7fff_ffff, u32::MAX - 1, u32::MAX] {
            let mut data = u32::to_be_bytes(inner).to_vec();
            data.extend_from_slice(b"\0\0");
            assert_eq!(error_of(haggle.ask(OptionType::GO, &data)), ReplyType::ERR_INVALID, "{inner}");
        }
        let mut many_wants = vec![0, 0, 0, 0];
        many_wants.extend_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(error_of(haggle.ask(OptionType::INFO, &many_wants)), ReplyType::ERR_INVALID);
        assert_eq!(error_of(haggle.ask(OptionType::GO, &vec![0; 70_000])), ReplyType::ERR_TOO_BIG);
        for strange in ["", "disc", "disk\0", "d\u{fffd}"] {
            let reply = error_of(haggle.ask_about(OptionType::GO, strange));
            assert!(matches!(reply, ReplyType::ERR_UNKNOWN | ReplyType::ERR_INVALID), "{strange:?}");
        }
        // After all that the connection is as good as new.
        let (listed, reply) = haggle.ask(OptionType::LIST, b"");
        assert_eq!((listed.len(), reply), (1, ReplyType::ACK));
        assert_eq!(haggle.ask_about(OptionType::GO, "disk").1, ReplyType::ACK);
    });
}

#[test]
fn client_flags_that_were_not_offered_end_the_connection() {
    in_the_clear("memory:1M", &[], |to| {
        for unknown in [4, 1 << 31, u32::MAX] {
            let mut haggle = Haggle::open(to, ClientFlags(unknown));
            assert_eq!(haggle.socket.until_closed(), b"");
        }
    });
}

#[test]
fn padding_goes_only_to_those_who_want_it() {
    in_the_clear("memory:1M", &[], |to| {
        let modern = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        for (flags, padding) in [(modern, 0), (ClientFlags::FIXED_NEWSTYLE, 124), (ClientFlags::NONE, 124)] {
            let mut haggle = Haggle::open(to, flags);
            haggle.say(OptionType::EXPORT_NAME, b"");
            let told = haggle.socket.receive(10 + padding).unwrap();
            assert_eq!(told[..8], MIB.to_be_bytes());
            assert!(told[10..].iter().all(|byte| *byte == 0));
            flush_follows(&mut haggle.socket);
        }
        let mut haggle = Haggle::open(to, ClientFlags::FIXED_NEWSTYLE);
        assert_eq!(haggle.ask_about(OptionType::GO, "").1, ReplyType::ACK);
        flush_follows(&mut haggle.socket);
    });
}

/// The stream stands exactly at the first request.
fn flush_follows(socket: &mut Socket) {
    let header = b"\x25\x60\x95\x13\0\0\0\x03COOKIE78\0\0\0\0\0\0\0\0\0\0\0\0";
    socket.write_all(header).expect("the server listens");
    let reply = socket.receive(16).expect("the server replies");
    assert_eq!(reply, b"\x67\x44\x66\x98\0\0\0\0COOKIE78");
}

#[test]
fn abort_is_acknowledged_and_a_client_that_is_gone_tolerated() {
    everywhere("memory:1M", &[], |to| {
        let mut haggle = Haggle::modern(to);
        assert_eq!(haggle.ask(OptionType::ABORT, b""), (vec![], ReplyType::ACK));
        assert_eq!(haggle.socket.until_closed(), b"");
        Haggle::modern(to).say(OptionType::ABORT, b"");
        assert_eq!(Client::connect(to).flush(), WireError::OK);
    });
}

#[test]
fn export_name_of_no_export_ends_the_connection() {
    everywhere("disk=memory:1M", &[], |to| {
        for name in [&b""[..], b"nope", &[0xff], &[b'x'; 4097]] {
            let mut haggle = Haggle::modern(to);
            haggle.say(OptionType::EXPORT_NAME, name);
            assert_eq!(haggle.socket.until_closed(), b"");
        }
    });
}

#[test]
fn every_error_is_the_one_the_spec_names() {
    use CommandType as C;
    everywhere("memory:1M", &[], |to| {
        let mut client = Client::connect(to);
        let beyond = [(MIB, 1), (MIB - 1, 2), (u64::MAX, 1), (u64::MAX - 10, 11), (1 << 63, 4096)];
        for (at, len) in beyond {
            assert_eq!(client.ask(C::READ, PLAIN, at, len), WireError::EINVAL, "{at}");
            assert_eq!(client.ask(C::TRIM, PLAIN, at, len), WireError::EINVAL, "{at}");
            assert_eq!(client.ask(C::WRITE_ZEROES, PLAIN, at, len), WireError::ENOSPC, "{at}");
            assert_eq!(client.write(PLAIN, at, &vec![1; len as usize]), WireError::ENOSPC, "{at}");
        }
        for unknown in [C::BLOCK_STATUS, C(8), C(0x8000), C(u16::MAX)] {
            assert_eq!(client.ask(unknown, PLAIN, 0, 512), WireError::EINVAL, "{unknown:?}");
        }
        for bit in 1..16 {
            let flag = CommandFlags(1 << bit);
            assert_eq!(client.ask(C::READ, flag, 0, 512), WireError::EINVAL, "{flag:?}");
            assert_eq!(client.write(flag, 0, &[1; 512]), WireError::EINVAL, "{flag:?}");
            assert_eq!(client.ask(C::FLUSH, flag, 0, 0), WireError::EINVAL, "{flag:?}");
            let zeroes = client.ask(C::WRITE_ZEROES, flag, 0, 512);
            let valid = [CommandFlags::NO_HOLE, CommandFlags::FAST_ZERO].contains(&flag);
            let expected = if valid { WireError::OK } else { WireError::EINVAL };
            assert_eq!(zeroes, expected, "{flag:?}");
        }
        for command in [C::READ, C::FLUSH, C::TRIM, C::WRITE_ZEROES, C::CACHE] {
            let len = if command == C::FLUSH { 0 } else { 512 };
            assert_eq!(client.ask(command, FUA, 0, len), WireError::OK, "FUA goes with {command:?}");
        }
        // None of the refused writes wrote.
        assert_eq!(client.read(0, 1 << 20).unwrap(), vec![0; 1 << 20]);
    });
}

#[test]
fn every_error_is_a_chunk_with_words_where_replies_are_structured() {
    everywhere("memory:1M", &[], |to| {
        let mut client = Chunked::connect(to, ReplyStyle::Structured, &[]);
        for (command, error) in [
            (CommandType::READ, WireError::EINVAL),
            (CommandType::TRIM, WireError::EINVAL),
            (CommandType::WRITE_ZEROES, WireError::ENOSPC),
            (CommandType(99), WireError::EINVAL),
        ] {
            let chunks = client.ask(command, PLAIN, MIB, 512);
            let [(ChunkType::ERROR, payload)] = &chunks[..] else { panic!("{command:?}: {chunks:?}") };
            let (told, words) = decode_error(payload).expect("an error");
            assert!(told == error && !words.is_empty(), "{command:?}: {told:?} {words:?}");
        }
    });
}

#[test]
fn nothing_of_length_zero_disconnects() {
    everywhere("memory:1M", &[], |to| {
        let mut client = Client::connect(to);
        for at in [0, 1, MIB] {
            assert_eq!(client.read(at, 0), Ok(vec![]));
            assert_eq!(client.write(FUA, at, &[]), WireError::OK);
            assert_eq!(client.ask(CommandType::TRIM, FUA, at, 0), WireError::OK);
            assert_eq!(client.ask(CommandType::WRITE_ZEROES, FUA, at, 0), WireError::OK);
        }
        assert_eq!(client.read(MIB + 1, 0), Err(WireError::EINVAL));
        assert_eq!(client.flush(), WireError::OK);
    });
}

#[test]
fn a_refused_write_is_drained_and_the_next_request_understood() {
    everywhere("memory:80M", &[], |to| {
        let mut client = Client::connect(to);
        let told = client.export.block_sizes.expect("they were asked for");
        assert_eq!(told.maximum_payload, PAYLOAD_MAX, "what clients should keep to");
        let longest = PAYLOAD_TAKEN_MAX as usize;
        let mut payload = pattern(3, longest + 4096);
        assert_eq!(client.write(PLAIN, 0, &payload), WireError::EINVAL, "longer than anybody takes");
        payload.truncate(longest);
        assert_eq!(client.write(PLAIN, 40 * MIB, &payload), WireError::ENOSPC, "out of range");
        assert_eq!(client.write(PLAIN, 17, &payload), WireError::OK, "the longest there may be");
        assert!(client.read(17, PAYLOAD_TAKEN_MAX).unwrap() == payload);
        assert_eq!(client.ask(CommandType::READ, PLAIN, 0, PAYLOAD_TAKEN_MAX + 1), WireError::EOVERFLOW);
        client.disconnect();
    });
}

#[test]
fn a_read_only_export_refuses_whatever_writes() {
    let disk = Disk::holding(&pattern(9, 100_000));
    everywhere(disk.path().to_str().unwrap(), &["--read-only"], |to| {
        let mut client = Client::connect(to);
        let flags = client.export.flags;
        assert!(flags.contains(TransmissionFlags::READ_ONLY), "{flags:?}");
        let writing = TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES;
        assert_eq!(flags.without(writing), flags, "what cannot be is not offered");
        assert_eq!(client.write(FUA, 0, &[1; 70_000]), WireError::EPERM);
        assert_eq!(client.ask(CommandType::TRIM, PLAIN, 0, 512), WireError::EPERM);
        assert_eq!(client.ask(CommandType::WRITE_ZEROES, PLAIN, 0, 512), WireError::EPERM);
        assert_eq!(client.flush(), WireError::OK);
        assert_eq!(client.read(0, 100_000).unwrap(), disk.content());
    });
    assert_eq!(disk.content(), pattern(9, 100_000));
}

#[test]
fn every_connection_sees_what_any_of_them_wrote() {
    let server = Server::builder().export("memory:1M").unix().tcp().start();
    let mut clients: Vec<Client> = (0..6).map(|n| Client::connect(&server.endpoints()[n % 2])).collect();
    for writer in 0..clients.len() {
        let seed = u8::try_from(writer).unwrap();
        assert_eq!(clients[writer].write(PLAIN, 1000, &pattern(seed, 5000)), WireError::OK);
        for reader in &mut clients {
            assert_eq!(reader.read(1000, 5000).unwrap(), pattern(seed, 5000));
        }
    }
}

#[test]
fn a_read_that_the_storage_fails_is_an_error_on_a_living_connection() {
    let disk = Disk::holding(&pattern(1, 65536));
    everywhere(disk.path().to_str().unwrap(), &[], |to| {
        let mut client = Client::connect(to);
        let file = OpenOptions::new().write(true).open(disk.path()).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(client.read(2048, 8192), Err(WireError::EIO), "half of it is gone");
        assert_eq!(client.read(8192, 4096), Err(WireError::EIO), "all of it is gone");
        assert_eq!(client.read(0, 4096).unwrap(), pattern(1, 4096));
        file.set_len(65536).unwrap();
        assert_eq!(client.read(4096, 4096).unwrap(), vec![0; 4096]);
    });
}

#[test]
fn a_client_that_sends_no_more_still_gets_its_replies() {
    everywhere("memory:32M", &[], |to| {
        let mut client = Client::connect(to);
        for n in 0..100 {
            client.send(CommandType::READ, PLAIN, n * 4096, 128 << 10);
        }
        client.send_write(FUA, 0, &[1; 4096]);
        client.socket.close_sending().unwrap();
        while client.outstanding() > 0 {
            assert_eq!(client.reply().error, WireError::OK);
        }
        assert_eq!(client.socket.until_closed(), b"");
    });
}

#[test]
fn disc_finishes_every_write_that_was_sent_before_it() {
    const LEN: usize = 16 << 10;
    let disk = Disk::sparse(200 * LEN as u64);
    everywhere(disk.path().to_str().unwrap(), &[], |to| {
        let mut client = Client::connect(to);
        let mut out = Vec::new();
        for n in 0..200 {
            client.encode(&mut out, CommandType::WRITE, PLAIN, n * LEN as u64, 16 << 10);
            out.extend(pattern(u8::try_from(n).unwrap(), LEN));
        }
        client.encode(&mut out, CommandType::DISC, PLAIN, 0, 0);
        client.socket.write_all(&out).unwrap();
        while client.outstanding() > 1 {
            assert_eq!(client.reply().error, WireError::OK);
        }
        assert_eq!(client.socket.until_closed(), b"", "no reply to DISC");
        for (n, block) in disk.content().chunks(LEN).enumerate() {
            assert_eq!(block, pattern(u8::try_from(n).unwrap(), LEN), "block {n}");
        }
    });
}

#[test]
fn disc_finishes_writes_even_of_a_client_that_reads_no_reply() {
    const LEN: usize = 64 << 10;
    let disk = Disk::sparse(100 * LEN as u64);
    let server = Server::builder().export(disk.spec()).unix().tcp().start();
    for (round, to) in server.endpoints().iter().enumerate() {
        let mut client = Client::connect(to);
        let data = pattern(u8::try_from(round).unwrap(), LEN);
        for n in 0..100 {
            client.send_write(PLAIN, n * LEN as u64, &data);
        }
        client.send(CommandType::DISC, PLAIN, 0, 0);
        client.socket.close_sending().unwrap();
        // Closing altogether would reset the connection, and what a reset overtakes is lost.
        tests::wait_until("all of the writes", || disk.content().chunks(LEN).all(|block| block == data));
    }
}
