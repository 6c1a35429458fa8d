//! Proves, against the running server: holes are told as what they are, by BLOCK_STATUS and in the
//! chunks of a READ, in every mode and also over data that `early-ack` still holds; extended headers
//! take lengths of 64 bits, answer everything in their own frame and filter contexts; errors say
//! where they were met; and a sparse terabyte is copied in seconds and stays sparse.

use std::fs;

use common::handshake::context::ReplyStyle;
use common::proto::{ChunkType, CommandFlags, CommandType, WireError};
use common::reply::Extent;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tests::chunked::{Chunked, error, extents};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::tool;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const NONE: CommandFlags = CommandFlags::NONE;
const ALLOCATION: &str = "base:allocation";
const STYLES: [ReplyStyle; 2] = [ReplyStyle::Structured, ReplyStyle::Extended];

/// Data, as BLOCK_STATUS tells it.
fn data(length: u64) -> Extent {
    Extent { length, status: 0 }
}

/// A hole that reads as zero, as BLOCK_STATUS tells it.
fn hole(length: u64) -> Extent {
    Extent { length, status: 3 }
}

/// A disk of 4 MiB with a megabyte of data at 1 MiB.
fn disk() -> Disk {
    let disk = Disk::sparse(4 * MIB);
    let mut content = vec![0; 2 << 20];
    content[1 << 20..].copy_from_slice(&pattern(1, 1 << 20));
    let file = fs::File::options().write(true).open(disk.path()).expect("it can be opened");
    std::os::unix::fs::FileExt::write_all_at(&file, &content[1 << 20..], MIB).expect("it can be written");
    disk
}

#[test]
fn holes_are_told_and_sent_as_holes() {
    let disk = disk();
    let server = Server::of(disk.spec());
    for style in STYLES {
        let mut client = Chunked::connect(server.endpoint(), style, &[ALLOCATION]);
        let told = client.status(NONE, 0, 4 * MIB);
        assert_eq!(told, [(1, vec![hole(MIB), data(MIB), hole(2 * MIB)])]);
        assert_eq!(client.status(CommandFlags::REQ_ONE, MIB + 5, MIB), [(1, vec![data(MIB - 5)])]);
        assert_eq!(client.status(NONE, 3 * MIB, 1), [(1, vec![hole(1)])]);

        let chunks = client.ask(CommandType::READ, NONE, 512 * KIB, 2 * MIB);
        let kinds: Vec<ChunkType> = chunks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [ChunkType::OFFSET_HOLE, ChunkType::OFFSET_DATA, ChunkType::OFFSET_HOLE]);
        let place = |at: u64, len: u32| [&at.to_be_bytes()[..], &len.to_be_bytes()].concat();
        assert_eq!(chunks[0].1, place(512 * KIB, 512 << 10));
        assert_eq!(chunks[1].1, [&MIB.to_be_bytes()[..], &pattern(1, 1 << 20)].concat());
        assert_eq!(chunks[2].1, place(2 * MIB, 512 << 10));

        let whole = client.ask(CommandType::READ, CommandFlags::DF, 512 * KIB, 2 * MIB);
        assert_eq!(whole.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [ChunkType::OFFSET_DATA]);
        assert!(whole[0].1[8..8 + (512 << 10)].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn data_that_a_mode_holds_back_is_no_hole() {
    for mode in ["writethrough", "writeback", "early-ack", "unsafe"] {
        let disk = disk();
        let server = Server::builder()
            .export(disk.spec())
            .args(&["--durability", mode, "--dirty-age", "60"])
            .unix()
            .start();
        let mut client = Chunked::connect(server.endpoint(), ReplyStyle::Extended, &[ALLOCATION]);
        let bytes = pattern(9, 64 << 10);
        let write = CommandFlags::PAYLOAD_LEN;
        for at in [3 * MIB, 3 * MIB + 64 * KIB] {
            let written = client.ask_with(CommandType::WRITE, write, at, 64 * KIB, &bytes);
            assert_eq!(written, [(ChunkType::NONE, vec![])], "{mode}");
        }
        let told = client.status(NONE, 2 * MIB, 2 * MIB);
        let expected = [hole(MIB), data(128 * KIB), hole(MIB - 128 * KIB)];
        assert_eq!(told, [(1, expected.to_vec())], "{mode}");
        let chunks = client.ask(CommandType::READ, NONE, 3 * MIB - 64 * KIB, 128 * KIB);
        assert_eq!(chunks.len(), 2, "{mode}");
        assert_eq!(chunks[1].1[8..], bytes, "{mode}");
    }
}

#[test]
fn zeroing_makes_holes_and_no_hole_does_not() {
    for (flags, sparse) in [(NONE, true), (CommandFlags::FAST_ZERO, true), (CommandFlags::NO_HOLE, false)] {
        let disk = Disk::holding(&pattern(1, 4 << 20));
        let server = Server::of(disk.spec());
        let mut client = Chunked::connect(server.endpoint(), ReplyStyle::Structured, &[ALLOCATION]);
        assert_eq!(client.status(NONE, 0, 4 * MIB), [(1, vec![data(4 * MIB)])]);
        drop(client);
        let mut plain = tests::client::Client::connect(server.endpoint());
        assert_eq!(plain.ask(CommandType::WRITE_ZEROES, flags, MIB, 2 << 20), WireError::OK);
        let is_sparse = disk.allocated() < 3 * MIB;
        assert_eq!(is_sparse, sparse, "{flags:?}");
        let mut client = Chunked::connect(server.endpoint(), ReplyStyle::Structured, &[ALLOCATION]);
        if sparse {
            let told = client.status(NONE, 0, 4 * MIB);
            assert_eq!(told, [(1, vec![data(MIB), hole(2 * MIB), data(MIB)])], "{flags:?}");
        }
        assert_eq!(plain.read(MIB, 2 << 20).expect("zeroes"), vec![0; 2 << 20]);
    }
}

#[test]
fn zeroes_that_cannot_be_fast_are_refused_and_change_nothing() {
    // Memory has zeroes for nothing only where it may give the space back.
    let server = Server::of("memory:1M");
    let mut client = tests::client::Client::connect(server.endpoint());
    let data = pattern(2, 64 << 10);
    assert_eq!(client.write(NONE, 0, &data), WireError::OK);
    let fast = CommandFlags::FAST_ZERO;
    for (flags, expected) in [
        (fast | CommandFlags::NO_HOLE, WireError::ENOTSUP),
        (fast | CommandFlags::NO_HOLE | CommandFlags::FUA, WireError::ENOTSUP),
        (CommandFlags::NO_HOLE, WireError::OK),
        (fast, WireError::OK),
    ] {
        assert_eq!(client.write(NONE, 0, &data), WireError::OK);
        assert_eq!(client.ask(CommandType::WRITE_ZEROES, flags, 0, 64 << 10), expected, "{flags:?}");
        let zeroed = vec![0; 64 << 10];
        let after = if expected == WireError::OK { &zeroed } else { &data };
        assert_eq!(client.read(0, 64 << 10).as_ref(), Ok(after), "{flags:?}");
    }
}

#[test]
fn cache_brings_a_range_into_memory() {
    let Some(fincore) = tool::find("fincore", "util-linux") else { return };
    // More than one call of the kernel reads ahead, also where its window is large.
    const LEN: u32 = 24 << 20;
    let disk = Disk::holding(&pattern(1, 32 << 20));
    let file = fs::File::open(disk.path()).expect("it can be opened");
    file.sync_all().expect("it can be synced");
    let cached = || {
        let arguments = ["--bytes", "--noheadings", "--output", "RES", disk.path().to_str().expect("text")];
        tool::succeed(&fincore, &arguments).trim().parse::<u64>().expect("a number of bytes")
    };
    let forget = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    posix_fadvise(&file, 0, 0, forget).expect("the kernel takes advice");
    if cached() > 0 {
        return tool::excuse("the temporary directory is on a file system that is memory");
    }
    let server = Server::of(disk.spec());
    let mut client = tests::client::Client::connect(server.endpoint());
    assert_eq!(client.ask(CommandType::CACHE, NONE, 4 << 20, LEN), WireError::OK);
    tests::wait_until("the range to be cached", || cached() >= u64::from(LEN));
}

#[test]
fn extended_headers_take_lengths_of_64_bits() {
    let disk = Disk::sparse(TIB);
    let server = Server::of(disk.spec());
    let mut client = Chunked::connect(server.endpoint(), ReplyStyle::Extended, &[ALLOCATION]);
    assert_eq!(client.status(NONE, 0, TIB), [(1, vec![hole(TIB)])]);
    let done = [(ChunkType::NONE, vec![])];
    assert_eq!(client.ask(CommandType::WRITE_ZEROES, NONE, 0, TIB), done);
    assert_eq!(client.ask(CommandType::TRIM, CommandFlags::FUA, MIB, TIB - MIB), done);
    assert_eq!(client.ask(CommandType::CACHE, NONE, 0, TIB), done);
    assert_eq!(client.ask(CommandType::FLUSH, NONE, 0, 0), done);
    assert!(disk.allocated() < MIB);
    for (command, at, len, expected) in [
        (CommandType::READ, 0, 1 << 33, WireError::EOVERFLOW),
        (CommandType::READ, TIB, 1, WireError::EINVAL),
        (CommandType::TRIM, 1, u64::MAX, WireError::EINVAL),
        (CommandType::WRITE_ZEROES, 1, TIB, WireError::ENOSPC),
        (CommandType::BLOCK_STATUS, 1, TIB, WireError::EINVAL),
        (CommandType::CACHE, 1, TIB, WireError::EINVAL),
        (CommandType(99), 0, 0, WireError::EINVAL),
    ] {
        assert_eq!(error(&client.ask(command, NONE, at, len)), (expected, None), "{command:?}");
    }
    // A payload that no command takes is thrown away, and the stream stays in step.
    let payload = client.ask_with(CommandType::TRIM, CommandFlags::PAYLOAD_LEN, 0, 512, &[7; 512]);
    assert_eq!(error(&payload), (WireError::EINVAL, None));
    assert_eq!(client.ask(CommandType::READ, NONE, 0, 0), done);
}

#[test]
fn a_payload_longer_than_any_ends_the_connection() {
    let server = Server::of("memory:1M");
    let mut client = Chunked::connect(server.endpoint(), ReplyStyle::Extended, &[]);
    let header = common::command::RequestHeader {
        flags: CommandFlags::PAYLOAD_LEN,
        command: CommandType::WRITE,
        cookie: 1,
        offset: 0,
        length: 1 << 40,
    };
    let mut out = Vec::new();
    header.encode_extended(&mut out);
    std::io::Write::write_all(&mut client.socket, &out).expect("the server takes bytes");
    assert_eq!(client.socket.until_closed(), b"");
    assert_eq!(tests::client::Client::connect(server.endpoint()).flush(), WireError::OK);
}

#[test]
fn a_payload_of_block_status_chooses_among_contexts() {
    let server = Server::of("memory:1M");
    let (names, _) = {
        let mut haggle = tests::haggle::Haggle::modern(server.endpoint());
        let all = common::handshake::context::ContextRequest { export: String::new(), queries: vec![] };
        haggle.ask(common::proto::OptionType::LIST_META_CONTEXT, &all.encode())
    };
    let names: Vec<String> =
        names.iter().map(|name| String::from_utf8(name[4..].to_vec()).expect("a name")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!((names.len(), names[0]), (2, ALLOCATION));
    let mut client = Chunked::connect(server.endpoint(), ReplyStyle::Extended, &names);
    let mut ask = |len: u64, ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let payload = [&len.to_be_bytes()[..], &ids].concat();
        let flags = CommandFlags::PAYLOAD_LEN;
        client.ask_with(CommandType::BLOCK_STATUS, flags, 4096, payload.len() as u64, &payload)
    };
    assert_eq!(extents(ask(512, &[1])), [(1, vec![hole(512)])]);
    assert_eq!(extents(ask(512, &[2])), [(2, vec![data(512)])]);
    assert_eq!(extents(ask(512, &[2, 1])).len(), 2);
    for (len, ids) in [(512, &[][..]), (512, &[3]), (512, &[0]), (512, &[1, 1]), (0, &[1]), (MIB, &[1])] {
        assert_eq!(error(&ask(len, ids)), (WireError::EINVAL, None), "{len} {ids:?}");
    }
    assert_eq!(error(&ask(512, &[1; 3])), (WireError::EINVAL, None));
}

#[test]
fn a_read_error_says_where_it_was_met() {
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let server = Server::of(disk.spec());
    // The file shrinks beneath the server, which is as good as a disk that ends early.
    let file = fs::File::options().write(true).open(disk.path()).expect("it can be opened");
    file.set_len(512 * KIB + 100).expect("it can be shortened");
    for style in STYLES {
        let mut client = Chunked::connect(server.endpoint(), style, &[]);
        let chunks = client.ask(CommandType::READ, CommandFlags::DF, 500 * KIB, 64 * KIB);
        assert_eq!(error(&chunks), (WireError::EIO, Some(512 * KIB + 100)));
        let good = client.ask(CommandType::READ, NONE, 0, 4096);
        assert_eq!(good[0].1[8..], pattern(1, 4096), "the connection lives");
    }
}

#[test]
fn a_sparse_terabyte_is_copied_both_ways_and_stays_sparse() {
    let Some(nbdcopy) = tool::find("nbdcopy", "libnbd-bin") else { return };
    let (from, to) = (Disk::sparse(TIB), Disk::sparse(TIB));
    for at in [0, TIB / 2 + 4096, TIB - 64 * KIB] {
        let file = fs::File::options().write(true).open(from.path()).expect("it can be opened");
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(3, 64 << 10), at).expect("written");
    }
    let server = Server::builder()
        .export(from.spec())
        .export({
            let mut spec = std::ffi::OsString::from("to=");
            spec.push(to.spec());
            spec
        })
        .unix()
        .start();
    let uri = |export| server.endpoint().uri(export);
    let back = Disk::sparse(TIB);
    let back_path = back.path().to_str().expect("a path of text").to_owned();
    tool::succeed(&nbdcopy, &["--destination-is-zero", &uri(""), &uri("to")]);
    tool::succeed(&nbdcopy, &["--destination-is-zero", &uri("to"), &back_path]);
    for copy in [&to, &back] {
        assert!(copy.allocated() < MIB, "{} bytes allocated", copy.allocated());
        for at in [0, TIB / 2 + 4096, TIB - 64 * KIB] {
            let mut found = vec![0; 64 << 10];
            let file = fs::File::open(copy.path()).expect("it can be opened");
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, at).expect("it can be read");
            assert_eq!(found, pattern(3, 64 << 10));
        }
    }
}
