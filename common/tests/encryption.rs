//! STARTTLS, option by option: when it is answered how, and that nothing said in the clear counts
//! afterwards.

use common::handshake::context::{Agreed, ContextRequest};
use common::handshake::server::{Encryption, Exports, Server, Step};
use common::handshake::{Export, Listed};
use common::option::{InfoRequest, REPLY_HEADER_LEN, ReplyHeader, put_option};
use common::proto::{OptionType, ReplyType, TransmissionFlags};
use common::{Violation, wire};

struct Shelf;

impl Exports for Shelf {
    type Handle = ();

    fn list(&self) -> Vec<Listed> {
        vec![]
    }

    fn find(&self, _: &str) -> Option<(Export, ())> {
        let flags = TransmissionFlags::HAS_FLAGS;
        Some((Export { size: 1, flags, block_sizes: None, name: None, description: None }, ()))
    }

    fn contexts(&self, (): &()) -> Vec<String> {
        vec!["base:allocation".into()]
    }
}

/// A negotiation after the client's flags.
fn begun(encryption: Encryption) -> Server {
    let (server, _greeting) = Server::new(encryption);
    match server.step(&3_u32.to_be_bytes(), &Shelf) {
        Ok(Step::Continue { next, .. }) => next,
        other => panic!("{other:?}"),
    }
}

/// Says an option, to the last step it takes.
fn say(mut server: Server, option: OptionType, data: &[u8]) -> Result<Step<()>, Violation> {
    let mut input = Vec::new();
    put_option(&mut input, option, data);
    let mut rest = &input[..];
    loop {
        let (piece, later) = rest.split_at(server.need());
        rest = later;
        match server.step(piece, &Shelf)? {
            Step::Continue { next, .. } if !rest.is_empty() => server = next,
            last => return Ok(last),
        }
    }
}

/// The reply to an option after which the haggling goes on.
fn reply(server: Server, option: OptionType, data: &[u8]) -> (ReplyType, Server) {
    match say(server, option, data) {
        Ok(Step::Continue { send, next }) => {
            (ReplyHeader::decode(&send[..REPLY_HEADER_LEN]).expect("a reply").reply, next)
        }
        other => panic!("{other:?}"),
    }
}

fn secured(server: Server) -> Server {
    match say(server, OptionType::STARTTLS, b"") {
        Ok(Step::StartTls { send, next }) => {
            let header = ReplyHeader::decode(&send).expect("a reply and nothing else");
            assert_eq!((header.option, header.reply), (OptionType::STARTTLS, ReplyType::ACK));
            next
        }
        other => panic!("{other:?}"),
    }
}

fn go() -> Vec<u8> {
    InfoRequest { export: "a".into(), wants: vec![] }.encode()
}

#[test]
fn without_tls_the_option_is_unknown() {
    assert_eq!(reply(begun(Encryption::Unavailable), OptionType::STARTTLS, b"").0, ReplyType::ERR_UNSUP);
}

#[test]
fn the_option_takes_no_data_and_works_once() {
    let (answer, server) = reply(begun(Encryption::Optional), OptionType::STARTTLS, b"data");
    assert_eq!(answer, ReplyType::ERR_INVALID);
    let (again, server) = reply(secured(server), OptionType::STARTTLS, b"");
    assert_eq!(again, ReplyType::ERR_INVALID);
    assert!(matches!(say(server, OptionType::GO, &go()), Ok(Step::Transmit { .. })));
}

#[test]
fn nothing_else_is_had_before_tls_that_is_required() {
    let mut server = begun(Encryption::Required);
    let contexts = ContextRequest { export: "a".into(), queries: vec![] }.encode();
    for (option, data) in [
        (OptionType::LIST, &b""[..]),
        (OptionType::INFO, &go()),
        (OptionType::GO, &go()),
        (OptionType::STRUCTURED_REPLY, b""),
        (OptionType::EXTENDED_HEADERS, b""),
        (OptionType::LIST_META_CONTEXT, &contexts),
        (OptionType(99), b"unknown"),
    ] {
        let (answer, next) = reply(server, option, data);
        assert_eq!(answer, ReplyType::ERR_TLS_REQD, "{option:?}");
        server = next;
    }
    assert!(matches!(say(secured(server), OptionType::GO, &go()), Ok(Step::Transmit { .. })));
    let named = say(begun(Encryption::Required), OptionType::EXPORT_NAME, b"a");
    assert_eq!(named.expect_err("it has no error reply"), Violation::Unencrypted);
    let aborted = say(begun(Encryption::Required), OptionType::ABORT, b"");
    assert!(matches!(aborted, Ok(Step::Close { .. })));
}

#[test]
fn what_was_agreed_in_the_clear_does_not_count() {
    let (answer, server) = reply(begun(Encryption::Optional), OptionType::STRUCTURED_REPLY, b"");
    assert_eq!(answer, ReplyType::ACK);
    let request = ContextRequest { export: "a".into(), queries: vec!["base:allocation".into()] };
    let (answer, server) = reply(server, OptionType::SET_META_CONTEXT, &request.encode());
    assert_eq!(answer, ReplyType::META_CONTEXT);
    let Ok(Step::Transmit { agreed, .. }) = say(secured(server), OptionType::GO, &go()) else {
        panic!("no transmission")
    };
    assert_eq!(agreed, Agreed::default());
}

#[test]
fn the_clients_flags_do_count() {
    let Ok(Step::Transmit { send, .. }) =
        say(secured(begun(Encryption::Optional)), OptionType::EXPORT_NAME, b"a")
    else {
        panic!("no transmission")
    };
    assert_eq!(send.len(), 10, "the client wanted no padding");
    assert_eq!(wire::Cursor::new(&send).u64(), Ok(1));
}

#[test]
fn a_client_without_fixed_newstyle_gets_no_tls() {
    for encryption in [Encryption::Optional, Encryption::Required] {
        let (server, _greeting) = Server::new(encryption);
        let Ok(Step::Continue { next: server, .. }) = server.step(&0_u32.to_be_bytes(), &Shelf) else {
            panic!("these flags are fine")
        };
        let (reply, server) = reply(server, OptionType::STARTTLS, b"");
        assert_eq!(reply, ReplyType::ERR_POLICY);
        let served = say(server, OptionType::EXPORT_NAME, b"");
        assert_eq!(served.is_ok(), encryption == Encryption::Optional);
    }
}

mod client {
    //! The other role: a client that wants TLS says nothing before it has it.

    use common::handshake::client::{Client, ClientError, Step};
    use common::option::{OPTION_HEADER_LEN, OptionHeader, put_reply};
    use common::proto::{IHAVEOPT, NBDMAGIC, OptionType, ReplyType};
    use common::wire::Put;

    /// What a client says after the greeting, behind its flags, and its next state.
    fn greeted(client: Client, flags: u16) -> Result<(Vec<u8>, Client), ClientError> {
        let mut greeting = Vec::new();
        greeting.put_u64(NBDMAGIC);
        greeting.put_u64(IHAVEOPT);
        greeting.put_u16(flags);
        match client.step(&greeting)? {
            Step::Continue { send, next } => Ok((send[4..].to_vec(), next)),
            other => panic!("{other:?}"),
        }
    }

    fn option(bytes: &[u8]) -> OptionType {
        OptionHeader::decode(&bytes[..OPTION_HEADER_LEN]).expect("an option").option
    }

    /// The answer to STARTTLS.
    fn answered(client: Client, reply: ReplyType, text: &str) -> Result<Step, ClientError> {
        let mut answer = Vec::new();
        put_reply(&mut answer, OptionType::STARTTLS, reply, text.as_bytes());
        let (header, data) = answer.split_at(client.need());
        match client.step(header)? {
            Step::Continue { next, .. } if !data.is_empty() => next.step(data),
            step => Ok(step),
        }
    }

    #[test]
    fn tls_comes_before_anything_else() {
        let goals = [
            (Client::new("x"), OptionType::GO),
            (Client::info("x"), OptionType::EXTENDED_HEADERS),
            (Ok(Client::list()), OptionType::LIST),
        ];
        for (client, first) in goals {
            let (said, client) = greeted(client.expect("a fine name").over_tls(), 3).expect("a server");
            assert_eq!((option(&said), said.len()), (OptionType::STARTTLS, OPTION_HEADER_LEN));
            let Ok(Step::StartTls { send, .. }) = answered(client, ReplyType::ACK, "") else {
                panic!("it goes on over TLS")
            };
            assert_eq!(option(&send), first);
        }
    }

    #[test]
    fn a_server_without_tls_is_left() {
        let client = || Client::new("x").expect("a fine name").over_tls();
        // One that knows no options at all would take EXPORT_NAME in the clear.
        assert!(matches!(greeted(client(), 0), Err(ClientError::NoTls { .. })));
        for refusal in [ReplyType::ERR_UNSUP, ReplyType::ERR_POLICY, ReplyType::ERR_INVALID] {
            let (_, client) = greeted(client(), 3).expect("a server");
            let error = answered(client, refusal, "not here").expect_err("it does not go on");
            assert_eq!(error, ClientError::NoTls { reply: refusal, text: "not here".into() });
            assert!(error.to_string().contains("has no TLS"), "{error}");
        }
    }
}
