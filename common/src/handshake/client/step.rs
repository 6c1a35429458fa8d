//! What a client's step leads to.

use super::Client;
use crate::handshake::context::ReplyStyle;
use crate::handshake::{Export, Listed};

/// What to do after a step.
#[derive(Debug)]
pub enum Step {
    /// Send, read [`Client::need`] bytes, step again.
    Continue {
        /// Bytes for the server, possibly none.
        send: Vec<u8>,
        /// The state to step next.
        next: Client,
    },
    /// Upgrade the stream to TLS; then send over it, read [`Client::need`] bytes, step again.
    StartTls {
        /// Bytes for the server, to be encrypted.
        send: Vec<u8>,
        /// The state to step next, over the encrypted stream.
        next: Client,
    },
    /// Send (possibly nothing), then transmission begins on this export.
    Ready {
        /// Bytes for the server.
        send: Vec<u8>,
        /// What the server told.
        export: Export,
    },
    /// Send, then close: the question was answered.
    Told {
        /// Bytes for the server: an ABORT. The server may close without acknowledging it.
        send: Vec<u8>,
        /// The answer.
        answer: Answer,
    },
}

/// The answer to a question that starts no transmission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// [`Client::info`]: all about the export.
    Export(Offer),
    /// [`Client::list`]: every export the server lists.
    Exports(Vec<Listed>),
}

/// All that a server offers about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What the export says about itself.
    pub export: Export,
    /// The most that its replies can say.
    pub style: ReplyStyle,
    /// The metadata contexts it has.
    pub contexts: Vec<String>,
}
