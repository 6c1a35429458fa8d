//! The negotiation by hand: any option with any data, and every reply to it.

use std::io::{self, Write};

use common::option::{InfoRequest, REPLY_HEADER_LEN, ReplyHeader, put_option};
use common::proto::{ClientFlags, InfoType, OptionType, ReplyType};

use crate::client::Socket;
use crate::server::Endpoint;

/// Bytes of the server's greeting.
const GREETING_LEN: usize = 18;

/// A connection that haggles.
pub struct Haggle {
    /// For bytes that no decent client sends.
    pub socket: Socket,
}

impl Haggle {
    /// Connects, takes the greeting and answers with these flags; over TLS where the endpoint says so.
    ///
    /// # Panics
    /// When the server does not greet.
    #[must_use]
    pub fn open(to: &Endpoint, flags: ClientFlags) -> Haggle {
        let mut socket = Socket::connect(to).expect("the server takes a connection");
        let greeting = socket.receive(GREETING_LEN).expect("the server greets");
        assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
        socket.write_all(&flags.0.to_be_bytes()).expect("the server listens");
        let mut haggle = Haggle { socket };
        if let Endpoint::Tls(_, trust) = to {
            let agreed = haggle.ask(OptionType::STARTTLS, b"");
            assert_eq!(agreed, (vec![], ReplyType::ACK), "the server has TLS");
            haggle.socket = haggle.socket.encrypted(trust);
        }
        haggle
    }

    /// Connects as a client of fixed newstyle that wants no padding.
    #[must_use]
    pub fn modern(to: &Endpoint) -> Haggle {
        Haggle::open(to, ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES)
    }

    /// Sends an option.
    pub fn say(&mut self, option: OptionType, data: &[u8]) {
        let mut out = Vec::new();
        put_option(&mut out, option, data);
        self.socket.write_all(&out).expect("the server listens");
    }

    /// The next reply, which must be to `option`.
    ///
    /// # Errors
    /// Of the socket; also when the server closes instead.
    pub fn hear(&mut self, option: OptionType) -> io::Result<(ReplyType, Vec<u8>)> {
        let header = ReplyHeader::decode(&self.socket.receive(REPLY_HEADER_LEN)?).expect("a reply");
        assert_eq!(header.option, option, "the reply is to what was said");
        Ok((header.reply, self.socket.receive(header.length as usize)?))
    }

    /// Sends an option; returns the pieces of its answer and how that ended.
    pub fn ask(&mut self, option: OptionType, data: &[u8]) -> (Vec<Vec<u8>>, ReplyType) {
        self.say(option, data);
        let mut pieces = Vec::new();
        loop {
            let (reply, data) = self.hear(option).expect("the server answers");
            if reply == ReplyType::ACK || reply.is_error() {
                return (pieces, reply);
            }
            pieces.push(data);
        }
    }

    /// Asks INFO or GO about an export, with everything a client can want to know.
    pub fn ask_about(&mut self, option: OptionType, export: &str) -> (Vec<Vec<u8>>, ReplyType) {
        let wants = vec![InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
        self.ask(option, &InfoRequest { export: export.to_owned(), wants }.encode())
    }
}
