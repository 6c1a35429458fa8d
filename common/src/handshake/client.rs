//! The client's side of the negotiation.
//!
//! A client has one goal: start transmission on an export ([`Client::new`]), learn all about one
//! ([`Client::info`]) or name them all ([`Client::list`]). For transmission it never negotiates
//! structured replies or extended headers, because the Linux driver that inherits the socket cannot
//! take them; to learn what a server can, it does. Where a server does not know GO, it falls back to
//! EXPORT_NAME.

mod error;
mod step;

pub use error::ClientError;
pub use step::{Answer, Offer, Step};

use super::context::{self, ContextRequest, ReplyStyle};
use super::{Export, Listed};
use crate::Violation;
use crate::option::{self, Info, InfoRequest, REPLY_HEADER_LEN, ReplyHeader, put_option};
use crate::proto::{
    ClientFlags, EXPORT_NAME_PADDING, HandshakeFlags, IHAVEOPT, InfoType, NBDMAGIC, OptionType, ReplyType,
    STRING_MAX, TransmissionFlags,
};
use crate::wire::{Cursor, Put};

/// Longest option reply a client stores; two strings of the spec's longest and their lengths.
pub const REPLY_DATA_MAX: usize = 2 * STRING_MAX + 64;
/// Replies to one option before the client gives up; far above any sensible list of exports.
pub const REPLIES_MAX: usize = 65_536;
/// Second word of an oldstyle greeting.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// The client's side of one negotiation.
#[derive(Debug)]
pub struct Client {
    goal: Goal,
    /// The option whose answer is awaited.
    asked: OptionType,
    state: State,
    no_zeroes: bool,
    replies: usize,
    export: Export,
    told_export: bool,
    style: ReplyStyle,
    contexts: Vec<String>,
    exports: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    Go(String),
    Info(String),
    List,
}

impl Goal {
    /// The option that opens its pursuit.
    fn first(&self) -> OptionType {
        match self {
            Goal::Go(_) => OptionType::GO,
            Goal::Info(_) => OptionType::EXTENDED_HEADERS,
            Goal::List => OptionType::LIST,
        }
    }
}

#[derive(Debug)]
enum State {
    Greeting,
    ReplyHeader,
    ReplyData(ReplyHeader),
    ExportName,
}

impl Client {
    /// A client that wants to start transmission on `export`.
    pub fn new(export: &str) -> Result<Client, ClientError> {
        Ok(Client::with(Goal::Go(checked(export)?)))
    }

    /// A client that wants to learn all about `export`.
    pub fn info(export: &str) -> Result<Client, ClientError> {
        Ok(Client::with(Goal::Info(checked(export)?)))
    }

    /// A client that wants to know the names of all exports.
    #[must_use]
    pub fn list() -> Client {
        Client::with(Goal::List)
    }

    fn with(goal: Goal) -> Client {
        let flags = TransmissionFlags::NONE;
        let export = Export { size: 0, flags, block_sizes: None, name: None, description: None };
        Client {
            asked: goal.first(),
            goal,
            state: State::Greeting,
            no_zeroes: false,
            replies: 0,
            export,
            told_export: false,
            style: ReplyStyle::Simple,
            contexts: vec![],
            exports: vec![],
        }
    }

    /// The same client, which says nothing before the stream is encrypted.
    #[must_use]
    pub fn over_tls(self) -> Client {
        Client { asked: OptionType::STARTTLS, ..self }
    }

    /// How many bytes the next [`Client::step`] takes: exactly these must be read.
    /// Never zero and never more than [`REPLY_DATA_MAX`].
    #[must_use]
    pub fn need(&self) -> usize {
        match &self.state {
            State::Greeting => 18,
            State::ReplyHeader => REPLY_HEADER_LEN,
            State::ReplyData(header) => header.length as usize,
            State::ExportName => 10 + if self.no_zeroes { 0 } else { EXPORT_NAME_PADDING },
        }
    }

    /// Takes the bytes that were needed.
    ///
    /// # Errors
    /// Any [`ClientError`] ends the connection.
    ///
    /// # Panics
    /// When `input` is not [`Client::need`] bytes long.
    pub fn step(mut self, input: &[u8]) -> Result<Step, ClientError> {
        assert_eq!(input.len(), self.need(), "a step takes exactly the bytes it needs");
        match std::mem::replace(&mut self.state, State::ReplyHeader) {
            State::Greeting => self.greeting(input),
            State::ReplyHeader => self.reply_header(input),
            State::ReplyData(header) => self.reply(header, input),
            State::ExportName => self.export_name(input),
        }
    }

    fn greeting(mut self, input: &[u8]) -> Result<Step, ClientError> {
        let mut cursor = Cursor::new(input);
        let first = cursor.u64().unwrap_or_default();
        if first != NBDMAGIC {
            return Err(Violation::Magic { expected: "NBDMAGIC", found: first }.into());
        }
        match cursor.u64().unwrap_or_default() {
            IHAVEOPT => {}
            OLDSTYLE_MAGIC => return Err(ClientError::Oldstyle),
            found => return Err(Violation::Magic { expected: "IHAVEOPT", found }.into()),
        }
        let offered = HandshakeFlags(cursor.u16().unwrap_or_default());
        let fixed = offered.contains(HandshakeFlags::FIXED_NEWSTYLE);
        self.no_zeroes = offered.contains(HandshakeFlags::NO_ZEROES);
        let mut flags = ClientFlags::NONE;
        if fixed {
            flags |= ClientFlags::FIXED_NEWSTYLE;
        }
        if self.no_zeroes {
            flags |= ClientFlags::NO_ZEROES;
        }
        let mut send = Vec::new();
        send.put_u32(flags.0);
        if fixed { self.ask(send) } else { self.fall_back(send) }
    }

    /// Puts the question.
    fn ask(self, mut send: Vec<u8>) -> Result<Step, ClientError> {
        send.extend(self.question());
        Ok(Step::Continue { send, next: self })
    }

    /// The option that is asked next.
    fn question(&self) -> Vec<u8> {
        let data = match (&self.goal, self.asked) {
            (Goal::Go(export) | Goal::Info(export), OptionType::GO | OptionType::INFO) => {
                let wants = vec![InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
                InfoRequest { export: export.clone(), wants }.encode()
            }
            (Goal::Info(export), OptionType::LIST_META_CONTEXT) => {
                ContextRequest { export: export.clone(), queries: vec![] }.encode()
            }
            _ => Vec::new(),
        };
        let mut send = Vec::new();
        put_option(&mut send, self.asked, &data);
        send
    }

    /// Asks by EXPORT_NAME, the only option of servers that know no other.
    fn fall_back(mut self, mut send: Vec<u8>) -> Result<Step, ClientError> {
        if self.asked == OptionType::STARTTLS {
            return Err(ClientError::NoTls { reply: ReplyType::ERR_UNSUP, text: String::new() });
        }
        let Goal::Go(export) = &self.goal else {
            return Err(ClientError::Refused { reply: ReplyType::ERR_UNSUP, text: String::new() });
        };
        put_option(&mut send, OptionType::EXPORT_NAME, export.as_bytes());
        self.state = State::ExportName;
        Ok(Step::Continue { send, next: self })
    }

    fn reply_header(mut self, input: &[u8]) -> Result<Step, ClientError> {
        let header = ReplyHeader::decode(input)?;
        let ReplyHeader { option, reply, length } = header;
        if option != self.asked {
            return Err(ClientError::Unexpected { option, reply });
        }
        if length as usize > REPLY_DATA_MAX {
            return Err(ClientError::TooLong(length));
        }
        self.replies += 1;
        if self.replies > REPLIES_MAX {
            return Err(ClientError::TooMany);
        }
        if length == 0 {
            return self.reply(header, &[]);
        }
        self.state = State::ReplyData(header);
        Ok(Step::Continue { send: Vec::new(), next: self })
    }

    fn reply(mut self, header: ReplyHeader, data: &[u8]) -> Result<Step, ClientError> {
        let ReplyHeader { option, reply, .. } = header;
        let malformed = |fault| ClientError::Malformed { reply, fault };
        if option == OptionType::STARTTLS {
            return self.start_tls(reply, data);
        }
        match (reply, &self.goal) {
            (ReplyType::ACK, _) => self.acknowledged(option),
            (ReplyType::SERVER, Goal::List) => {
                self.exports.push(option::decode_listed(data).map_err(malformed)?);
                Ok(Step::Continue { send: Vec::new(), next: self })
            }
            (ReplyType::INFO, Goal::Go(_) | Goal::Info(_))
                if matches!(option, OptionType::GO | OptionType::INFO) =>
            {
                self.learn(Info::decode(data).map_err(malformed)?);
                Ok(Step::Continue { send: Vec::new(), next: self })
            }
            (ReplyType::META_CONTEXT, Goal::Info(_)) if option == OptionType::LIST_META_CONTEXT => {
                self.contexts.push(context::decode_context(data).map_err(malformed)?.name);
                Ok(Step::Continue { send: Vec::new(), next: self })
            }
            (ReplyType::ERR_UNSUP, Goal::Go(_)) => self.fall_back(Vec::new()),
            // What a server does not have is an answer, too.
            (reply, Goal::Info(_)) if reply.is_error() && option != OptionType::INFO => {
                self.ask_on(option, false)
            }
            (reply, _) if reply.is_error() => {
                let text = String::from_utf8_lossy(data).into_owned();
                Err(ClientError::Refused { reply, text })
            }
            _ => Err(ClientError::Unexpected { option, reply }),
        }
    }

    /// Begins anew over TLS: nothing that was said in the clear counts.
    fn start_tls(mut self, reply: ReplyType, data: &[u8]) -> Result<Step, ClientError> {
        if reply != ReplyType::ACK {
            let text = String::from_utf8_lossy(data).into_owned();
            return Err(ClientError::NoTls { reply, text });
        }
        self.asked = self.goal.first();
        Ok(Step::StartTls { send: self.question(), next: self })
    }

    fn learn(&mut self, info: Info) {
        match info {
            Info::Export { size, flags } => {
                (self.export.size, self.export.flags) = (size, flags);
                self.told_export = true;
            }
            Info::Name(name) => self.export.name = Some(name),
            Info::Description(text) => self.export.description = Some(text),
            // Sizes that break the spec's rules would mislead whoever aligns by them.
            Info::BlockSizes(sizes) => self.export.block_sizes = Some(sizes).filter(|s| s.are_valid()),
            Info::Other(_) => {}
        }
    }

    /// Puts the next of the questions that tell all about an export.
    fn ask_on(mut self, answered: OptionType, agreed: bool) -> Result<Step, ClientError> {
        self.asked = match (answered, agreed) {
            (OptionType::EXTENDED_HEADERS, false) => OptionType::STRUCTURED_REPLY,
            (OptionType::EXTENDED_HEADERS, true) => {
                self.style = ReplyStyle::Extended;
                OptionType::LIST_META_CONTEXT
            }
            (OptionType::STRUCTURED_REPLY, _) => {
                self.style = if agreed { ReplyStyle::Structured } else { ReplyStyle::Simple };
                OptionType::LIST_META_CONTEXT
            }
            _ => OptionType::INFO,
        };
        self.ask(Vec::new())
    }

    fn acknowledged(self, option: OptionType) -> Result<Step, ClientError> {
        if matches!(self.goal, Goal::Info(_)) && option != OptionType::INFO {
            return self.ask_on(option, true);
        }
        let mut abort = Vec::new();
        put_option(&mut abort, OptionType::ABORT, &[]);
        match self.goal {
            Goal::List => Ok(Step::Told { send: abort, answer: Answer::Exports(self.exports) }),
            _ if !self.told_export => Err(ClientError::Unexpected { option, reply: ReplyType::ACK }),
            Goal::Info(_) => {
                let offer = Offer { export: self.export, style: self.style, contexts: self.contexts };
                Ok(Step::Told { send: abort, answer: Answer::Export(offer) })
            }
            Goal::Go(_) => Ok(Step::Ready { send: Vec::new(), export: self.export }),
        }
    }

    fn export_name(mut self, input: &[u8]) -> Result<Step, ClientError> {
        let mut cursor = Cursor::new(input);
        self.export.size = cursor.u64().unwrap_or_default();
        self.export.flags = TransmissionFlags(cursor.u16().unwrap_or_default());
        Ok(Step::Ready { send: Vec::new(), export: self.export })
    }
}

fn checked(export: &str) -> Result<String, ClientError> {
    crate::wire::string(export.as_bytes()).map(str::to_owned).map_err(|_| ClientError::Name)
}
