//! What a server's step leads to.

use super::Server;
use crate::handshake::Export;
use crate::handshake::context::Agreed;

/// What to do after a step.
#[derive(Debug)]
pub enum Step<H> {
    /// Send, read [`Server::need`] bytes, step again.
    Continue {
        /// Bytes for the client, possibly none.
        send: Vec<u8>,
        /// The state to step next.
        next: Server,
    },
    /// Send, then transmission begins.
    Transmit {
        /// Bytes for the client.
        send: Vec<u8>,
        /// What the client was told.
        export: Export,
        /// What was agreed on beside that.
        agreed: Agreed,
        /// The chosen export's handle.
        handle: H,
    },
    /// Send, upgrade the stream to TLS, and go on with what was negotiated so far: nothing.
    StartTls {
        /// Bytes for the client, in the clear.
        send: Vec<u8>,
        /// The state to step next, over the encrypted stream.
        next: Server,
    },
    /// Send, then close: the client aborted.
    Close {
        /// Bytes for the client.
        send: Vec<u8>,
    },
}
