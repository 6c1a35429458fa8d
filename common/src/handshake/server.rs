//! The server's side of the negotiation.
//!
//! The state enum is the table of contents: greeting sent → client flags → (option header →
//! option data)* → transmission. Data of options that are unknown or too long is skipped in
//! small pieces and never stored, so a client cannot make the server remember anything.

mod offer;
mod step;

pub use offer::{Encryption, Exports};
pub use step::Step;

use super::Export;
use super::context::{Agreed, Context, ContextRequest, ReplyStyle, put_context};
use crate::Violation;
use crate::option::{self, InfoRequest, OPTION_HEADER_LEN, OptionHeader, put_reply};
use crate::proto::{
    ClientFlags, EXPORT_NAME_PADDING, HandshakeFlags, IHAVEOPT, InfoType, NBDMAGIC, OptionType, ReplyType,
    STRING_MAX, TransmissionFlags,
};
use crate::wire::{self, Put};

/// Longest option data that is kept: an INFO with the longest name and 256 information requests, or
/// a question for a handful of contexts.
/// Longer data of a known option is skipped and answered with ERR_TOO_BIG.
pub const OPTION_DATA_MAX: usize = 4 + STRING_MAX + 2 + 512;
/// Options in one handshake; `nbdinfo --list` on a thousand exports stays below this.
pub const OPTIONS_MAX: u32 = 4096;
/// Bytes of skipped option data that are taken at a time.
const SKIP_PIECE: usize = 4096;

/// The server's side of one negotiation.
#[derive(Debug)]
pub struct Server {
    state: State,
    fixed: bool,
    no_zeroes: bool,
    options: u32,
    encryption: Encryption,
    style: ReplyStyle,
    style_max: ReplyStyle,
    selection: Option<Selection>,
}

/// Contexts, and the export for which they were selected.
#[derive(Debug)]
struct Selection {
    export: String,
    contexts: Vec<Context>,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData(OptionHeader),
    Skip { option: OptionType, left: u32, answer: ReplyType },
}

impl Server {
    /// A fresh negotiation in the clear and the greeting that opens it.
    #[must_use]
    pub fn new(encryption: Encryption) -> (Server, Vec<u8>) {
        let mut greeting = Vec::new();
        greeting.put_u64(NBDMAGIC);
        greeting.put_u64(IHAVEOPT);
        greeting.put_u16((HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).0);
        (Server::fresh(State::ClientFlags, encryption), greeting)
    }

    /// Nothing has been agreed on.
    fn fresh(state: State, encryption: Encryption) -> Server {
        let (style, style_max) = (ReplyStyle::Simple, ReplyStyle::Extended);
        let (options, selection) = (0, None);
        Server { state, fixed: false, no_zeroes: false, options, encryption, style, style_max, selection }
    }

    /// The same negotiation, in which nothing above a style can be agreed on: whoever passes replies on as they are can
    /// take no other.
    #[must_use]
    pub fn at_most(self, style_max: ReplyStyle) -> Server {
        Server { style_max, ..self }
    }

    /// How many bytes the next [`Server::step`] takes: exactly these must be read.
    /// Never zero and never more than [`OPTION_DATA_MAX`].
    #[must_use]
    pub fn need(&self) -> usize {
        match &self.state {
            State::ClientFlags => 4,
            State::OptionHeader => OPTION_HEADER_LEN,
            State::OptionData(header) => header.length as usize,
            State::Skip { left, .. } => SKIP_PIECE.min(*left as usize),
        }
    }

    /// Takes the bytes that were needed.
    ///
    /// # Errors
    /// A [`Violation`] ends the connection.
    ///
    /// # Panics
    /// When `input` is not [`Server::need`] bytes long.
    pub fn step<E: Exports>(mut self, input: &[u8], exports: &E) -> Result<Step<E::Handle>, Violation> {
        assert_eq!(input.len(), self.need(), "a step takes exactly the bytes it needs");
        match std::mem::replace(&mut self.state, State::OptionHeader) {
            State::ClientFlags => self.client_flags(input),
            State::OptionHeader => self.option_header(input, exports),
            State::OptionData(header) => self.option(header.option, input, exports),
            State::Skip { option, left, answer } => {
                let left = left.saturating_sub(u32::try_from(input.len()).unwrap_or(u32::MAX));
                Ok(self.skip(option, left, answer))
            }
        }
    }

    fn client_flags<H>(mut self, input: &[u8]) -> Result<Step<H>, Violation> {
        let flags = ClientFlags(wire::Cursor::new(input).u32().unwrap_or_default());
        let unknown = flags.without(ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES);
        if unknown != ClientFlags::NONE {
            return Err(Violation::ClientFlags(flags.0));
        }
        self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        Ok(self.then(Vec::new()))
    }

    fn option_header<E: Exports>(mut self, input: &[u8], exports: &E) -> Result<Step<E::Handle>, Violation> {
        let header = OptionHeader::decode(input)?;
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(Violation::TooManyOptions(OPTIONS_MAX));
        }
        let OptionHeader { option, length } = header;
        if self.encryption == Encryption::Required {
            match option {
                OptionType::ABORT | OptionType::STARTTLS => {}
                OptionType::EXPORT_NAME => return Err(Violation::Unencrypted),
                _ => return Ok(self.skip(option, length, ReplyType::ERR_TLS_REQD)),
            }
        }
        match option {
            // "the server SHOULD ignore any data sent by the client" with ABORT, so it need not
            // even be read: the connection closes.
            OptionType::ABORT => Ok(Step::Close { send: reply(option, ReplyType::ACK, "") }),
            OptionType::EXPORT_NAME if length as usize > STRING_MAX => Err(Violation::MalformedName),
            OptionType::EXPORT_NAME
            | OptionType::INFO
            | OptionType::GO
            | OptionType::LIST
            | OptionType::STRUCTURED_REPLY
            | OptionType::EXTENDED_HEADERS
            | OptionType::LIST_META_CONTEXT
            | OptionType::SET_META_CONTEXT => {
                if length as usize > OPTION_DATA_MAX {
                    return Ok(self.skip(option, length, ReplyType::ERR_TOO_BIG));
                }
                if length == 0 {
                    return self.option(option, &[], exports);
                }
                self.state = State::OptionData(header);
                Ok(Step::Continue { send: Vec::new(), next: self })
            }
            OptionType::STARTTLS => Ok(self.start_tls(length)),
            _ => Ok(self.skip(option, length, ReplyType::ERR_UNSUP)),
        }
    }

    /// Ends what was said in the clear: whoever could read it could also have said it, so none of
    /// it counts.
    fn start_tls<H>(self, length: u32) -> Step<H> {
        let option = OptionType::STARTTLS;
        if self.encryption == Encryption::Unavailable {
            return self.skip(option, length, ReplyType::ERR_UNSUP);
        }
        // "The server MUST operate in NOTLS mode unless … the client replied with
        // NBD_FLAG_C_FIXED_NEWSTYLE".
        if !self.fixed {
            return self.skip(option, length, ReplyType::ERR_POLICY);
        }
        if length > 0 || self.encryption == Encryption::Active {
            return self.skip(option, length, ReplyType::ERR_INVALID);
        }
        let fresh = Server::fresh(State::OptionHeader, Encryption::Active);
        let next =
            Server { fixed: self.fixed, no_zeroes: self.no_zeroes, style_max: self.style_max, ..fresh };
        Step::StartTls { send: reply(option, ReplyType::ACK, ""), next }
    }

    /// Skips what is left of an option's data, then answers.
    fn skip<H>(mut self, option: OptionType, left: u32, answer: ReplyType) -> Step<H> {
        if left == 0 {
            return self.then(reply(option, answer, ""));
        }
        self.state = State::Skip { option, left, answer };
        Step::Continue { send: Vec::new(), next: self }
    }

    fn option<E: Exports>(
        self,
        option: OptionType,
        data: &[u8],
        exports: &E,
    ) -> Result<Step<E::Handle>, Violation> {
        match option {
            OptionType::EXPORT_NAME => self.export_name(data, exports),
            OptionType::LIST => Ok(self.list(data, exports)),
            OptionType::STRUCTURED_REPLY => Ok(self.style(option, ReplyStyle::Structured, data)),
            OptionType::EXTENDED_HEADERS => Ok(self.style(option, ReplyStyle::Extended, data)),
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => {
                Ok(self.contexts(option, data, exports))
            }
            _ => Ok(self.info(option, data, exports)),
        }
    }

    fn export_name<E: Exports>(self, data: &[u8], exports: &E) -> Result<Step<E::Handle>, Violation> {
        let name = wire::string(data).map_err(|_| Violation::MalformedName)?;
        let Some((export, handle)) = exports.find(name) else {
            return Err(Violation::UnknownExport(name.to_owned()));
        };
        let export = self.told(name, export);
        let mut send = Vec::new();
        send.put_u64(export.size);
        send.put_u16(export.flags.0);
        if !self.no_zeroes {
            send.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        }
        let agreed = self.agreed(name);
        Ok(Step::Transmit { send, export, agreed, handle })
    }

    fn list<E: Exports>(self, data: &[u8], exports: &E) -> Step<E::Handle> {
        if !data.is_empty() {
            return self.then(reply(OptionType::LIST, ReplyType::ERR_INVALID, "LIST takes no data"));
        }
        let mut send = Vec::new();
        for listed in exports.list() {
            option::put_listed(&mut send, &listed);
        }
        put_reply(&mut send, OptionType::LIST, ReplyType::ACK, &[]);
        self.then(send)
    }

    fn info<E: Exports>(self, option: OptionType, data: &[u8], exports: &E) -> Step<E::Handle> {
        let Ok(InfoRequest { export: name, wants }) = InfoRequest::decode(data) else {
            return self.then(reply(option, ReplyType::ERR_INVALID, "malformed request for information"));
        };
        let Some((export, handle)) = exports.find(&name) else {
            return self.then(reply(option, ReplyType::ERR_UNKNOWN, "no export of that name"));
        };
        let export = self.told(&name, export);
        let mut send = Vec::new();
        option::put_infos(&mut send, option, &export, &wants);
        put_reply(&mut send, option, ReplyType::ACK, &[]);
        if option == OptionType::GO {
            // A client that did not ask for block sizes was not told them.
            let block_sizes = export.block_sizes.filter(|_| wants.contains(&InfoType::BLOCK_SIZE));
            let agreed = self.agreed(&name);
            return Step::Transmit { send, export: Export { block_sizes, ..export }, agreed, handle };
        }
        self.then(send)
    }

    /// Agrees on a style that says more than the one agreed before.
    fn style<H>(mut self, option: OptionType, style: ReplyStyle, data: &[u8]) -> Step<H> {
        if !data.is_empty() {
            return self.then(reply(option, ReplyType::ERR_INVALID, "the option takes no data"));
        }
        if style > self.style_max {
            return self.then(reply(option, ReplyType::ERR_UNSUP, "replies are simple here"));
        }
        if self.style >= style {
            return self.then(reply(option, ReplyType::ERR_INVALID, "that or more is agreed already"));
        }
        self.style = style;
        self.then(reply(option, ReplyType::ACK, ""))
    }

    /// Names contexts or selects some. A selection replaces the one before, also when it fails.
    fn contexts<E: Exports>(mut self, option: OptionType, data: &[u8], exports: &E) -> Step<E::Handle> {
        let selects = option == OptionType::SET_META_CONTEXT;
        if selects {
            self.selection = None;
        }
        let Ok(request) = ContextRequest::decode(data) else {
            return self.then(reply(option, ReplyType::ERR_INVALID, "malformed request for contexts"));
        };
        if selects && self.style == ReplyStyle::Simple {
            return self.then(reply(option, ReplyType::ERR_INVALID, "structured replies must come first"));
        }
        let Some((_, handle)) = exports.find(&request.export) else {
            return self.then(reply(option, ReplyType::ERR_UNKNOWN, "no export of that name"));
        };
        let offered = exports.contexts(&handle);
        let mut send = Vec::new();
        if selects {
            let names = request.selected(&offered).cloned();
            let contexts: Vec<Context> = (1..).zip(names).map(|(id, name)| Context { id, name }).collect();
            contexts.iter().for_each(|context| put_context(&mut send, option, context.id, &context.name));
            self.selection = Some(Selection { export: request.export, contexts });
        } else {
            request.listed(&offered).for_each(|name| put_context(&mut send, option, 0, name));
        }
        put_reply(&mut send, option, ReplyType::ACK, &[]);
        self.then(send)
    }

    /// What an export says about itself under what is agreed.
    fn told(&self, name: &str, mut export: Export) -> Export {
        export.flags |= self.style.flags();
        // "SHOULD NOT advertise this bit … if the client does not negotiate metacontexts".
        let selected = self.selection.as_ref().filter(|selection| selection.export == name);
        if selected.is_none_or(|selection| selection.contexts.is_empty()) {
            export.flags = export.flags.without(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        export
    }

    /// What is agreed once `export` is chosen; contexts that were selected for another are not.
    fn agreed(self, export: &str) -> Agreed {
        let selection = self.selection.filter(|selection| selection.export == export);
        Agreed { style: self.style, contexts: selection.map_or_else(Vec::new, |it| it.contexts) }
    }

    fn then<H>(self, send: Vec<u8>) -> Step<H> {
        Step::Continue { send, next: self }
    }
}

/// One option reply with a text for people.
fn reply(option: OptionType, reply: ReplyType, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_reply(&mut out, option, reply, text.as_bytes());
    out
}
