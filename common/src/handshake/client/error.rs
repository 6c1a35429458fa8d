//! Why a client's negotiation fails, in words for people.

use super::REPLIES_MAX;
use crate::Violation;
use crate::proto::{OptionType, ReplyType};
use crate::wire::Malformed;

/// Why a client's negotiation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The peer broke the protocol; most likely it is no NBD server.
    #[error("the peer does not speak NBD: {0}")]
    Violation(#[from] Violation),
    /// A reply of the server was malformed.
    #[error("the server sent a malformed {reply:?} reply: {fault}")]
    Malformed {
        /// Which reply.
        reply: ReplyType,
        /// What is wrong with it.
        fault: Malformed,
    },
    /// The server speaks the oldstyle protocol.
    #[error("the server speaks only the oldstyle protocol, which names no exports")]
    Oldstyle,
    /// The server refused, with its own words if it had any.
    #[error("the server refused: {}{}", explain(*reply), quote(text))]
    Refused {
        /// The error reply.
        reply: ReplyType,
        /// The server's text, possibly empty.
        text: String,
    },
    /// The server does not do TLS, and the client does not do without.
    #[error("the server has no TLS: {}{}", explain(*reply), quote(text))]
    NoTls {
        /// Its answer to STARTTLS.
        reply: ReplyType,
        /// The server's text, possibly empty.
        text: String,
    },
    /// The server answered with something that is no answer to the question.
    #[error("the server answered {option:?} with an unexpected {reply:?}")]
    Unexpected {
        /// What was asked, or what the server claims was asked.
        option: OptionType,
        /// What came.
        reply: ReplyType,
    },
    /// One reply is longer than any sensible reply.
    #[error("the server sent a reply of {0} bytes, more than any sensible reply")]
    TooLong(u32),
    /// The server replied without end.
    #[error("the server sent more than {REPLIES_MAX} replies to one option")]
    TooMany,
    /// The name is longer than 4096 bytes or holds a NUL.
    #[error("an export name has at most 4096 bytes and no NUL")]
    Name,
}

/// What an error reply means, for a person.
fn explain(reply: ReplyType) -> String {
    match reply {
        ReplyType::ERR_UNSUP => "it does not know the request".into(),
        ReplyType::ERR_POLICY => "its policy forbids it".into(),
        ReplyType::ERR_INVALID => "it found the request invalid".into(),
        ReplyType::ERR_PLATFORM => "its platform does not support it".into(),
        ReplyType::ERR_TLS_REQD => "it requires TLS".into(),
        ReplyType::ERR_UNKNOWN => "it has no export of that name".into(),
        ReplyType::ERR_SHUTDOWN => "it is shutting down".into(),
        ReplyType::ERR_BLOCK_SIZE_REQD => "it requires block sizes to be negotiated".into(),
        ReplyType::ERR_TOO_BIG => "the request is too big for it".into(),
        other => format!("{other:?}"),
    }
}

/// The server's own words, made safe for a terminal.
fn quote(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text:?})") }
}
