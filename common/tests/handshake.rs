//! The two roles of the handshake, driven against each other in memory, byte by byte.
//!
//! Proves that they agree on every goal, that neither wants more bytes than the other sends (so
//! nothing of the next phase is swallowed), and what the server answers to options it lacks.

use common::Violation;
use common::handshake::client::{Answer, Client, ClientError, Offer, Step as ClientStep};
use common::handshake::context::ReplyStyle;
use common::handshake::server::{Encryption, Exports, OPTION_DATA_MAX, Server, Step as ServerStep};
use common::handshake::{BlockSizes, Export, Listed};
use common::option::{InfoRequest, OPTION_HEADER_LEN, REPLY_HEADER_LEN, ReplyHeader, put_option, put_reply};
use common::proto::*;
use common::wire::Put;

/// Two exports: the default one and "disk".
struct Shelf;

impl Exports for Shelf {
    type Handle = &'static str;

    fn list(&self) -> Vec<Listed> {
        vec![Listed { name: "disk".into(), description: Some("the big one".into()) }]
    }

    fn find(&self, name: &str) -> Option<(Export, &'static str)> {
        let handle = ["", "disk"].into_iter().find(|known| *known == name)?;
        Some((export(name), handle))
    }

    fn contexts(&self, handle: &&'static str) -> Vec<String> {
        ["base:allocation", "x-test:one", "x-test:two"].map(|name| format!("{name}{handle}")).to_vec()
    }
}

fn export(name: &str) -> Export {
    Export {
        size: 12_345_678,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        block_sizes: Some(BlockSizes { minimum: 1, preferred: 4096, maximum_payload: PAYLOAD_MAX }),
        name: Some(name.into()),
        description: Some("the big one".into()),
    }
}

/// What both sides ended with.
struct End {
    client: Result<ClientStep, ClientError>,
    /// The handle the server chose, where transmission began.
    server: Option<&'static str>,
    /// Bytes that the client left unread.
    unread: usize,
}

/// Lets the two talk until one is done; each gets its bytes only when it has all it asked for.
fn talk(client: Client) -> End {
    let (server, greeting) = Server::new(Encryption::Unavailable);
    let (mut to_client, mut to_server) = (greeting, Vec::new());
    let (mut client, mut server, mut chosen) = (client, Some(server), None);
    for _ in 0..1000 {
        if let Some(waiting) = server.take_if(|s| to_server.len() >= s.need()) {
            let input: Vec<u8> = to_server.drain(..waiting.need()).collect();
            match waiting.step(&input, &Shelf).expect("our client keeps the protocol") {
                ServerStep::Continue { send, next } => {
                    to_client.extend(send);
                    server = Some(next);
                }
                ServerStep::Transmit { send, handle, .. } => {
                    to_client.extend(send);
                    chosen = Some(handle);
                }
                ServerStep::Close { send } => to_client.extend(send),
                ServerStep::StartTls { .. } => panic!("there is no TLS"),
            }
            continue;
        }
        let input: Vec<u8> = to_client.drain(..client.need()).collect();
        match client.step(&input) {
            Ok(ClientStep::Continue { send, next }) => {
                to_server.extend(send);
                client = next;
            }
            end => return End { client: end, server: chosen, unread: to_client.len() },
        }
    }
    panic!("the two never came to an end");
}

#[test]
fn go_starts_transmission_and_leaves_nothing_unread() {
    for name in ["", "disk"] {
        let end = talk(Client::new(name).unwrap());
        let Ok(ClientStep::Ready { send, export: told }) = end.client else {
            panic!("not ready: {:?}", end.client)
        };
        assert_eq!((told, end.server, end.unread, send.len()), (export(name), Some(name), 0, 0));
    }
}

#[test]
fn info_tells_what_go_would_tell() {
    let end = talk(Client::info("disk").unwrap());
    let Ok(ClientStep::Told { answer, .. }) = end.client else { panic!("not told: {:?}", end.client) };
    let mut told = export("disk");
    told.flags |= TransmissionFlags::SEND_DF;
    let contexts = ["base:allocation", "x-test:one", "x-test:two"].map(|name| format!("{name}disk")).to_vec();
    assert_eq!(answer, Answer::Export(Offer { export: told, style: ReplyStyle::Extended, contexts }));
    assert_eq!((end.server, end.unread), (None, 0));
}

#[test]
fn list_names_the_exports() {
    let end = talk(Client::list());
    let Ok(ClientStep::Told { answer, .. }) = end.client else { panic!("not told: {:?}", end.client) };
    assert_eq!(answer, Answer::Exports(Shelf.list()));
}

#[test]
fn an_unknown_export_is_refused_with_words() {
    let error = talk(Client::new("nope").unwrap()).client.unwrap_err();
    assert!(matches!(error, ClientError::Refused { reply: ReplyType::ERR_UNKNOWN, .. }), "{error:?}");
    assert!(error.to_string().contains("no export of that name"), "{error}");
}

/// Feeds bytes to a server as its needs dictate; returns what it sent after the greeting.
fn serve(input: &[u8]) -> Result<(Vec<u8>, Option<&'static str>), Violation> {
    let (mut server, _) = Server::new(Encryption::Unavailable);
    let (mut at, mut sent) = (0, Vec::new());
    while let Some(piece) = input.get(at..at + server.need()) {
        at += piece.len();
        match server.step(piece, &Shelf)? {
            ServerStep::Continue { send, next } => {
                sent.extend(send);
                server = next;
            }
            ServerStep::Transmit { send, handle, .. } => {
                sent.extend(send);
                return Ok((sent, Some(handle)));
            }
            ServerStep::Close { send } => {
                sent.extend(send);
                return Ok((sent, None));
            }
            ServerStep::StartTls { .. } => panic!("there is no TLS"),
        }
    }
    Ok((sent, None))
}

fn haggle(options: &[(OptionType, &[u8])]) -> Vec<u8> {
    let mut input = Vec::new();
    input.put_u32((ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES).0);
    for (option, data) in options {
        put_option(&mut input, *option, data);
    }
    input
}

/// The types of the replies in what a server sent.
fn replies(mut sent: &[u8]) -> Vec<(OptionType, ReplyType)> {
    let mut found = Vec::new();
    while !sent.is_empty() {
        let header = ReplyHeader::decode(&sent[..REPLY_HEADER_LEN]).expect("a whole reply");
        found.push((header.option, header.reply));
        sent = &sent[REPLY_HEADER_LEN + header.length as usize..];
    }
    found
}

#[test]
fn options_the_server_lacks_are_skipped_exactly_and_answered() {
    let lacking = [(OptionType::STARTTLS, &[][..]), (OptionType(4), &[]), (OptionType(4242), &[1, 2, 3])];
    let mut options = lacking.to_vec();
    options.push((OptionType::LIST, &[]));
    let (sent, _) = serve(&haggle(&options)).unwrap();
    let mut expected: Vec<_> = lacking.map(|(option, _)| (option, ReplyType::ERR_UNSUP)).to_vec();
    expected.extend([(OptionType::LIST, ReplyType::SERVER), (OptionType::LIST, ReplyType::ACK)]);
    assert_eq!(replies(&sent), expected);
}

#[test]
fn malformed_and_oversized_options_get_errors_and_the_haggling_goes_on() {
    let long = vec![0; OPTION_DATA_MAX + 1];
    let wrapping = [0xff; 6];
    let options = [
        (OptionType::LIST, &b"data"[..]),
        (OptionType::GO, &wrapping),
        (OptionType::INFO, &[]),
        (OptionType::INFO, &long),
        (OptionType::SET_META_CONTEXT, &[7; 9999]),
        (OptionType::LIST_META_CONTEXT, &wrapping),
        (OptionType::STRUCTURED_REPLY, b"data"),
        (OptionType::GO, &InfoRequest { export: "x".into(), wants: vec![] }.encode().clone()),
        (OptionType::ABORT, &b"ignored"[..]),
    ];
    let (sent, _) = serve(&haggle(&options)).unwrap();
    assert_eq!(
        replies(&sent),
        [
            (OptionType::LIST, ReplyType::ERR_INVALID),
            (OptionType::GO, ReplyType::ERR_INVALID),
            (OptionType::INFO, ReplyType::ERR_INVALID),
            (OptionType::INFO, ReplyType::ERR_TOO_BIG),
            (OptionType::SET_META_CONTEXT, ReplyType::ERR_TOO_BIG),
            (OptionType::LIST_META_CONTEXT, ReplyType::ERR_INVALID),
            (OptionType::STRUCTURED_REPLY, ReplyType::ERR_INVALID),
            (OptionType::GO, ReplyType::ERR_UNKNOWN),
            (OptionType::ABORT, ReplyType::ACK),
        ]
    );
}

#[test]
fn export_name_pads_only_for_clients_that_want_it() {
    for (flags, padding) in [(ClientFlags::FIXED_NEWSTYLE, 124), (ClientFlags(3), 0)] {
        let mut input = flags.0.to_be_bytes().to_vec();
        put_option(&mut input, OptionType::EXPORT_NAME, b"disk");
        let (sent, chosen) = serve(&input).unwrap();
        assert_eq!((sent.len(), chosen), (10 + padding, Some("disk")));
        assert_eq!(sent[..8], 12_345_678_u64.to_be_bytes());
    }
}

#[test]
fn what_has_no_error_reply_ends_the_connection() {
    let unknown = serve(&haggle(&[(OptionType::EXPORT_NAME, b"nope")]));
    assert_eq!(unknown.unwrap_err(), Violation::UnknownExport("nope".into()));
    assert_eq!(serve(&8_u32.to_be_bytes()).unwrap_err(), Violation::ClientFlags(8));
    let mut input = haggle(&[]);
    input.extend_from_slice(&[0; OPTION_HEADER_LEN]);
    assert!(matches!(serve(&input).unwrap_err(), Violation::Magic { .. }));
    let endless = vec![(OptionType::LIST, &b"x"[..]); 5000];
    assert!(matches!(serve(&haggle(&endless)).unwrap_err(), Violation::TooManyOptions(_)));
}

/// Feeds a client from a script of bytes and returns how it ended and what it sent.
fn ask(mut client: Client, server: &[u8]) -> (Option<Result<ClientStep, ClientError>>, Vec<u8>) {
    let (mut at, mut sent) = (0, Vec::new());
    while let Some(piece) = server.get(at..at + client.need()) {
        at += piece.len();
        match client.step(piece) {
            Ok(ClientStep::Continue { send, next }) => {
                sent.extend(send);
                client = next;
            }
            end => return (Some(end), sent),
        }
    }
    (None, sent)
}

fn greeting(flags: u16) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(NBDMAGIC);
    out.put_u64(IHAVEOPT);
    out.put_u16(flags);
    out
}

#[test]
fn the_client_falls_back_to_export_name() {
    let mut fixed = greeting(1);
    put_reply(&mut fixed, OptionType::GO, ReplyType::ERR_UNSUP, b"");
    for mut server in [fixed, greeting(0)] {
        server.put_u64(4096);
        server.put_u16(1);
        server.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        let (end, sent) = ask(Client::new("disk").unwrap(), &server);
        let Some(Ok(ClientStep::Ready { export, .. })) = end else { panic!("{end:?}") };
        assert_eq!(export.size, 4096);
        assert!(sent.ends_with(b"disk"));
    }
}

#[test]
fn the_client_gives_up_on_servers_that_make_no_sense() {
    let end = |bytes: &[u8]| ask(Client::new("").unwrap(), bytes).0.unwrap().unwrap_err();
    assert!(matches!(end(b"SSH-2.0-OpenSSH_9.2 Debian"), ClientError::Violation(_)));
    let mut oldstyle = NBDMAGIC.to_be_bytes().to_vec();
    oldstyle.put_u64(0x0000_4202_8186_1253);
    oldstyle.put_u16(0);
    assert_eq!(end(&oldstyle), ClientError::Oldstyle);

    let reply = |option, kind, data: &[u8]| {
        let mut server = greeting(3);
        put_reply(&mut server, option, kind, data);
        end(&server)
    };
    let bare_ack = reply(OptionType::GO, ReplyType::ACK, b"");
    assert!(matches!(bare_ack, ClientError::Unexpected { reply: ReplyType::ACK, .. }));
    assert!(matches!(reply(OptionType::LIST, ReplyType::ACK, b""), ClientError::Unexpected { .. }));
    assert!(matches!(reply(OptionType::GO, ReplyType::SERVER, b""), ClientError::Unexpected { .. }));
    assert!(matches!(reply(OptionType::GO, ReplyType::INFO, &[0; 3]), ClientError::Malformed { .. }));
    assert!(matches!(reply(OptionType::GO, ReplyType::INFO, &[0; 70_000]), ClientError::TooLong(_)));
    let rude = reply(OptionType::GO, ReplyType::ERR_POLICY, b"\x1b[31mno");
    assert!(!rude.to_string().contains('\x1b'), "a server's words must not reach the terminal raw");
}
