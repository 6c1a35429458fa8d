//! Structured replies and metadata contexts, option by option: what is listed, what is selected,
//! and what is agreed once an export is chosen.

use common::handshake::context::{Agreed, ContextRequest, ReplyStyle, decode_context};
use common::handshake::server::{Encryption, Exports, Server, Step};
use common::handshake::{Export, Listed};
use common::option::{InfoRequest, REPLY_HEADER_LEN, ReplyHeader, put_option};
use common::proto::{OptionType, ReplyType, TransmissionFlags};

struct Shelf;

impl Exports for Shelf {
    type Handle = String;

    fn list(&self) -> Vec<Listed> {
        vec![]
    }

    fn find(&self, name: &str) -> Option<(Export, String)> {
        let flags = TransmissionFlags::HAS_FLAGS;
        let export = Export { size: 1, flags, block_sizes: None, name: None, description: None };
        ["a", "b"].contains(&name).then(|| (export, name.to_owned()))
    }

    fn contexts(&self, handle: &String) -> Vec<String> {
        vec!["base:allocation".into(), format!("x-test:{handle}"), "x-test:both".into()]
    }
}

/// A negotiation, to be driven option by option.
struct Haggle(Option<Server>);

/// What an option led to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Names of contexts, and the last reply.
    Answer(Vec<String>, ReplyType),
    /// Transmission, and the flags that were told.
    Agreed(Agreed, TransmissionFlags),
}

impl Haggle {
    fn new() -> Haggle {
        let (server, _greeting) = Server::new(Encryption::Unavailable);
        let Ok(Step::Continue { next, .. }) = server.step(&3_u32.to_be_bytes(), &Shelf) else {
            panic!("the flags are fine")
        };
        Haggle(Some(next))
    }

    fn say(&mut self, option: OptionType, data: &[u8]) -> Outcome {
        let mut input = Vec::new();
        put_option(&mut input, option, data);
        let (mut rest, mut said) = (&input[..], Vec::new());
        loop {
            let server = self.0.take().expect("still haggling");
            let (piece, later) = rest.split_at(server.need());
            rest = later;
            match server.step(piece, &Shelf).expect("no violation") {
                Step::Continue { send, next } => {
                    said.extend(send);
                    self.0 = Some(next);
                }
                Step::Transmit { agreed, export, .. } => return Outcome::Agreed(agreed, export.flags),
                Step::Close { .. } | Step::StartTls { .. } => panic!("nobody asked for that"),
            }
            if rest.is_empty() {
                return answer(&said);
            }
        }
    }

    fn ask(&mut self, option: OptionType, export: &str, queries: &[&str]) -> Outcome {
        let queries = queries.iter().map(|query| (*query).to_owned()).collect();
        self.say(option, &ContextRequest { export: export.into(), queries }.encode())
    }

    fn structured() -> Haggle {
        let mut haggle = Haggle::new();
        assert_eq!(haggle.say(OptionType::STRUCTURED_REPLY, &[]), Outcome::Answer(vec![], ReplyType::ACK));
        haggle
    }

    fn go(mut self, export: &str) -> (Agreed, TransmissionFlags) {
        let request = InfoRequest { export: export.into(), wants: vec![] };
        match self.say(OptionType::GO, &request.encode()) {
            Outcome::Agreed(agreed, flags) => (agreed, flags),
            other => panic!("{other:?}"),
        }
    }
}

fn answer(mut said: &[u8]) -> Outcome {
    let mut names = Vec::new();
    loop {
        let header = ReplyHeader::decode(&said[..REPLY_HEADER_LEN]).expect("a reply");
        let (data, rest) = said[REPLY_HEADER_LEN..].split_at(header.length as usize);
        if header.reply != ReplyType::META_CONTEXT {
            assert!(rest.is_empty(), "nothing follows the last reply");
            return Outcome::Answer(names, header.reply);
        }
        names.push(decode_context(data).expect("a context").name);
        said = rest;
    }
}

fn named(names: &[&str]) -> Outcome {
    Outcome::Answer(names.iter().map(|name| (*name).to_owned()).collect(), ReplyType::ACK)
}

fn refused(reply: ReplyType) -> Outcome {
    Outcome::Answer(vec![], reply)
}

const LIST: OptionType = OptionType::LIST_META_CONTEXT;
const SET: OptionType = OptionType::SET_META_CONTEXT;

#[test]
fn list_takes_names_and_namespaces_and_needs_no_structured_replies() {
    let mut haggle = Haggle::new();
    assert_eq!(haggle.ask(LIST, "a", &[]), named(&["base:allocation", "x-test:a", "x-test:both"]));
    assert_eq!(haggle.ask(LIST, "b", &["x-test:"]), named(&["x-test:b", "x-test:both"]));
    assert_eq!(
        haggle.ask(LIST, "b", &["x-test:b", "base:", "base:"]),
        named(&["base:allocation", "x-test:b"])
    );
    assert_eq!(haggle.ask(LIST, "b", &["x-test", "", ":", "base:other"]), named(&[]));
    assert_eq!(haggle.ask(LIST, "c", &[]), refused(ReplyType::ERR_UNKNOWN));
}

#[test]
fn set_selects_exact_names_for_one_export() {
    let mut haggle = Haggle::structured();
    assert_eq!(haggle.ask(SET, "a", &["x-test:a", "base:", "x-test:b"]), named(&["x-test:a"]));
    let (agreed, flags) = haggle.go("a");
    assert_eq!(agreed.style, ReplyStyle::Structured);
    assert_eq!(agreed.contexts.iter().map(|it| &it.name[..]).collect::<Vec<_>>(), ["x-test:a"]);
    assert!(flags.contains(TransmissionFlags::SEND_DF));
}

#[test]
fn a_selection_for_another_export_or_one_that_failed_later_is_none() {
    let mut haggle = Haggle::structured();
    haggle.ask(SET, "a", &["x-test:a"]);
    assert_eq!(haggle.go("b").0.contexts, []);

    for (queries, export, reply) in
        [(&["x-test:a"][..], "c", ReplyType::ERR_UNKNOWN), (&[], "a", ReplyType::ACK)]
    {
        let mut haggle = Haggle::structured();
        haggle.ask(SET, "a", &["x-test:a"]);
        assert_eq!(haggle.ask(SET, export, queries), Outcome::Answer(vec![], reply));
        assert_eq!(haggle.go("a").0.contexts, [], "{reply:?}");
    }
}

#[test]
fn ids_tell_the_selected_apart() {
    let mut haggle = Haggle::structured();
    haggle.ask(SET, "a", &["x-test:both", "base:allocation"]);
    let ids: Vec<u32> = haggle.go("a").0.contexts.iter().map(|context| context.id).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn structured_replies_are_agreed_once_and_before_contexts() {
    let mut haggle = Haggle::new();
    assert_eq!(haggle.ask(SET, "a", &["x-test:a"]), refused(ReplyType::ERR_INVALID));
    assert_eq!(haggle.say(OptionType::STRUCTURED_REPLY, &[]), refused(ReplyType::ACK));
    assert_eq!(haggle.say(OptionType::STRUCTURED_REPLY, &[]), refused(ReplyType::ERR_INVALID));
    assert_eq!(haggle.go("a").0, Agreed { style: ReplyStyle::Structured, contexts: vec![] });

    let (agreed, flags) = Haggle::new().go("a");
    assert_eq!(agreed, Agreed::default());
    assert!(!flags.contains(TransmissionFlags::SEND_DF));
}

#[test]
fn extended_headers_say_more_than_structured_replies() {
    let mut haggle = Haggle::structured();
    assert_eq!(haggle.say(OptionType::EXTENDED_HEADERS, b"x"), refused(ReplyType::ERR_INVALID));
    assert_eq!(haggle.say(OptionType::EXTENDED_HEADERS, &[]), refused(ReplyType::ACK));
    for again in [OptionType::EXTENDED_HEADERS, OptionType::STRUCTURED_REPLY] {
        assert_eq!(haggle.say(again, &[]), refused(ReplyType::ERR_INVALID));
    }
    assert_eq!(haggle.ask(SET, "a", &["x-test:a"]), named(&["x-test:a"]));
    let (agreed, flags) = haggle.go("a");
    assert_eq!((agreed.style, agreed.contexts.len()), (ReplyStyle::Extended, 1));
    assert!(flags.contains(TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD));

    // Where nothing is selected there is nothing to choose from.
    let mut haggle = Haggle::new();
    assert_eq!(haggle.say(OptionType::EXTENDED_HEADERS, &[]), refused(ReplyType::ACK));
    assert_eq!(haggle.ask(SET, "b", &["x-test:b"]), named(&["x-test:b"]));
    let (agreed, flags) = haggle.go("a");
    assert_eq!((agreed.style, agreed.contexts.len()), (ReplyStyle::Extended, 0));
    assert!(!flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
}
