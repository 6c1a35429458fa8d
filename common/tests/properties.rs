//! No input makes either role panic or want memory without bound, and what is written is read
//! back the same. Failing cases print their seed.

use common::command::{Chunks, Command, Fua, Hole, RequestHeader, Speed, Terms};
use common::handshake::client::{Client, REPLY_DATA_MAX, Step as ClientStep};
use common::handshake::context::{Context, ContextRequest, ReplyStyle, decode_context, put_context};
use common::handshake::server::{Encryption, Exports, OPTION_DATA_MAX, Server, Step as ServerStep};
use common::handshake::{Export, Listed};
use common::option::{InfoRequest, put_option, put_reply};
use common::proto::*;
use common::reply::{
    ChunkHeader, Extent, SimpleReply, decode_error, decode_extents, decode_extents_extended, put_error,
    put_extents, put_extents_extended,
};
use common::uri::{Tls, Transport, Uri};
use common::wire::Put;
use proptest::prelude::*;

struct Anything;

impl Exports for Anything {
    type Handle = ();

    fn list(&self) -> Vec<Listed> {
        vec![]
    }

    fn find(&self, name: &str) -> Option<(Export, ())> {
        let flags = TransmissionFlags::HAS_FLAGS;
        let export = Export { size: 1, flags, block_sizes: None, name: None, description: None };
        (name.len() < 4).then_some((export, ()))
    }

    fn contexts(&self, (): &()) -> Vec<String> {
        vec!["base:allocation".into(), "x-test:one".into()]
    }
}

/// Pieces of a plausible conversation, so that random input gets past the first magic.
fn client_bytes() -> impl Strategy<Value = Vec<u8>> {
    let option = (0_u32..13, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(kind, data)| {
        let mut out = Vec::new();
        put_option(&mut out, OptionType(kind), &data);
        out
    });
    let piece = prop_oneof![
        6 => option,
        1 => proptest::collection::vec(any::<u8>(), 0..60),
        1 => Just(InfoRequest { export: "a".into(), wants: vec![InfoType::NAME] }.encode()),
        2 => (8_u32..11, proptest::collection::vec("[a-z:-]{0,6}", 0..4)).prop_map(|(kind, queries)| {
            let mut out = Vec::new();
            let data = ContextRequest { export: "a".into(), queries }.encode();
            put_option(&mut out, OptionType(kind), if kind == 8 { &[] } else { &data });
            out
        }),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| {
        let mut out = 3_u32.to_be_bytes().to_vec();
        out.extend(pieces.concat());
        out
    })
}

fn server_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0_u32..5, (0_u32..12).prop_map(|bits| 1 << 31 | bits)];
    let option = prop_oneof![4 => Just(7_u32), 1 => any::<u32>()];
    let reply = (option, kind, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(o, k, data)| {
        let mut out = Vec::new();
        put_reply(&mut out, OptionType(o), ReplyType(k), &data);
        out
    });
    let piece = prop_oneof![5 => reply, 1 => proptest::collection::vec(any::<u8>(), 0..60)];
    (any::<u16>(), proptest::collection::vec(piece, 0..8)).prop_map(|(flags, pieces)| {
        let mut out = Vec::new();
        out.put_u64(NBDMAGIC);
        out.put_u64(IHAVEOPT);
        out.put_u16(flags);
        out.extend(pieces.concat());
        out
    })
}

fn run_server(input: &[u8]) {
    let (mut server, _) = Server::new(Encryption::Unavailable);
    let mut at = 0;
    loop {
        assert!((1..=OPTION_DATA_MAX).contains(&server.need()));
        let Some(piece) = input.get(at..at + server.need()) else { return };
        at += piece.len();
        match server.step(piece, &Anything) {
            Ok(ServerStep::Continue { next, send }) => {
                assert!(send.len() < 64 << 10);
                server = next;
            }
            _ => return,
        }
    }
}

fn run_client(input: &[u8]) {
    let clients = [Client::new("x"), Client::info("x"), Ok(Client::list())];
    for mut client in clients.map(|client| client.expect("a fine name")) {
        let mut at = 0;
        loop {
            assert!((1..=REPLY_DATA_MAX).contains(&client.need()));
            let Some(piece) = input.get(at..at + client.need()) else { break };
            at += piece.len();
            match client.step(piece) {
                Ok(ClientStep::Continue { next, .. }) => client = next,
                _ => break,
            }
        }
    }
}

fn terms() -> impl Strategy<Value = Terms> {
    let styles = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended];
    let style = proptest::sample::select(styles.to_vec());
    (any::<u64>(), any::<u16>(), 0_u32..17, 0_u32..26, style).prop_map(
        |(size, flags, block, payload, style)| Terms {
            size,
            flags: TransmissionFlags(flags),
            block_min: 1 << block,
            payload_max: 1 << payload,
            contexts: u32::from(flags & 3),
            style,
        },
    )
}

fn header() -> impl Strategy<Value = RequestHeader> {
    let flags = prop_oneof![Just(0_u16), Just(1), Just(2), any::<u16>()];
    let offset = prop_oneof![0_u64..10_000, any::<u64>()];
    let length = prop_oneof![0_u32..10_000, any::<u32>()];
    (flags, 0_u16..10, any::<u64>(), offset, length).prop_map(|(flags, command, cookie, offset, length)| {
        let (flags, command) = (CommandFlags(flags), CommandType(command));
        RequestHeader { flags, command, cookie, offset, length: length.into() }
    })
}

proptest! {
    #[test]
    fn server_survives_any_bytes(input in proptest::collection::vec(any::<u8>(), 0..300)) {
        run_server(&input);
    }

    #[test]
    fn server_survives_plausible_conversations(input in client_bytes()) {
        run_server(&input);
    }

    #[test]
    fn client_survives_any_bytes(input in proptest::collection::vec(any::<u8>(), 0..300)) {
        run_client(&input);
    }

    #[test]
    fn client_survives_plausible_conversations(input in server_bytes()) {
        run_client(&input);
    }

    #[test]
    fn admitted_commands_keep_every_promise(header in header(), terms in terms()) {
        let admitted = header.admit(&terms);
        let extended = terms.style == ReplyStyle::Extended;
        let payload = header.command == CommandType::WRITE
            || extended && header.flags.contains(CommandFlags::PAYLOAD_LEN);
        let expected_skip = if payload { header.length } else { 0 };
        let payload_max = u64::from(terms.payload_max);
        let has = |flag| terms.flags.contains(flag);
        match admitted {
            Err(refusal) => {
                prop_assert_eq!(refusal.skip, expected_skip);
                prop_assert_ne!(refusal.error, WireError::OK);
            }
            Ok(Command::Disconnect | Command::Flush) => {}
            Ok(Command::Read(span, chunks)) => {
                prop_assert!(span.end() <= terms.size && span.len <= payload_max);
                prop_assert!(chunks == Chunks::One || terms.style > ReplyStyle::Simple);
            }
            Ok(Command::Write(span, fua)) => {
                prop_assert!(span.end() <= terms.size && span.len <= payload_max);
                prop_assert!(!has(TransmissionFlags::READ_ONLY));
                prop_assert!(fua == Fua::No || has(TransmissionFlags::SEND_FUA));
                prop_assert_eq!(span.at % u64::from(terms.block_min), 0);
            }
            Ok(Command::Trim(span, _)) => {
                prop_assert!(span.end() <= terms.size && has(TransmissionFlags::SEND_TRIM));
                prop_assert!(!has(TransmissionFlags::READ_ONLY));
            }
            Ok(Command::Cache(span)) => {
                prop_assert!(span.end() <= terms.size && has(TransmissionFlags::SEND_CACHE));
            }
            Ok(Command::Filter) => {
                prop_assert!(extended && has(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
                prop_assert!(header.length <= u64::from(8 + 4 * terms.contexts));
            }
            Ok(Command::BlockStatus(span, ..)) => {
                prop_assert!(span.end() <= terms.size && span.len > 0 && terms.contexts > 0);
            }
            Ok(Command::WriteZeroes(span, how, _)) => {
                prop_assert!(span.end() <= terms.size && has(TransmissionFlags::SEND_WRITE_ZEROES));
                prop_assert_eq!(how.hole == Hole::Forbidden, header.flags.contains(CommandFlags::NO_HOLE));
                prop_assert!(how.speed == Speed::Any || has(TransmissionFlags::SEND_FAST_ZERO));
            }
        }
    }

    #[test]
    fn headers_and_replies_read_back(header in header(), error in any::<u32>(), cookie in any::<u64>()) {
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        let bytes: [u8; REQUEST_HEADER_LEN] = bytes.try_into().unwrap();
        prop_assert_eq!(RequestHeader::decode(&bytes), Ok(header));
        let long = RequestHeader { length: header.offset, ..header };
        let mut bytes = Vec::new();
        long.encode_extended(&mut bytes);
        let bytes: [u8; EXTENDED_HEADER_LEN] = bytes.try_into().unwrap();
        prop_assert_eq!(RequestHeader::decode_extended(&bytes), Ok(long));
        let reply = SimpleReply { error: WireError(error), cookie };
        prop_assert_eq!(SimpleReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn uris_print_what_they_parse(
        host in "[a-z][a-z0-9.-]{0,20}", port in 1_u16.., path in "/[ -~é]{1,30}", export in "[ -~é]{0,30}",
        unix in any::<bool>(), tls in any::<bool>(),
    ) {
        let transport = match unix {
            true => Transport::Unix { path: path.into() },
            false => Transport::Tcp { host, port },
        };
        let tls = if tls { Tls::Required } else { Tls::Off };
        let uri = Uri { transport, tls, export, certificates: None };
        prop_assert_eq!(uri.to_string().parse(), Ok(uri));
    }

    #[test]
    fn no_text_makes_the_uri_parser_panic(text in "\\PC*") {
        let _ = text.parse::<Uri>();
    }
}

proptest! {
    #[test]
    fn chunks_survive_being_written_and_read(
        flags: u16, kind: u16, cookie: u64, length: u32, offset: u64, error: u32, text in "\\PC{0,40}",
        extents in proptest::collection::vec((1_u32.., any::<u32>()), 1..9),
    ) {
        let header = ChunkHeader { flags: ChunkFlags(flags), kind: ChunkType(kind), cookie, length };
        prop_assert_eq!(ChunkHeader::decode(&header.encode()), Ok(header));
        prop_assert_eq!(ChunkHeader::decode_extended(&header.encode_extended(offset)), Ok((header, offset)));
        let mut out = Vec::new();
        put_error(&mut out, WireError(error), &text);
        prop_assert_eq!(decode_error(&out), Ok((WireError(error), text)));
        let extents: Vec<_> =
            extents.into_iter().map(|(length, status)| Extent { length: length.into(), status: status.into() }).collect();
        let mut out = Vec::new();
        put_extents(&mut out, kind.into(), &extents);
        prop_assert_eq!(decode_extents(&out), Ok((kind.into(), extents.clone())));
        let mut out = Vec::new();
        put_extents_extended(&mut out, kind.into(), &extents);
        prop_assert_eq!(decode_extents_extended(&out), Ok((kind.into(), extents)));
    }

    #[test]
    fn requests_for_contexts_survive_being_written_and_read(
        export in "[a-z]{0,9}", queries in proptest::collection::vec("[a-z:-]{0,9}", 0..5), id: u32, name in "[a-z]{0,9}",
    ) {
        let request = ContextRequest { export, queries };
        prop_assert_eq!(ContextRequest::decode(&request.encode()), Ok(request));
        let mut out = Vec::new();
        put_context(&mut out, OptionType::SET_META_CONTEXT, id, &name);
        prop_assert_eq!(decode_context(&out[20..]), Ok(Context { id, name }));
    }

    #[test]
    fn no_chunk_is_read_past_its_end(data in proptest::collection::vec(any::<u8>(), 0..60)) {
        let (_, _, _) = (decode_extents(&data), decode_error(&data), ContextRequest::decode(&data));
        let (_, _) = (decode_context(&data), decode_extents_extended(&data));
    }
}
