//! The two directions of a connection, and a hint about its client.

use futures::io::{AsyncRead, AsyncWrite};

/// A stream to a client.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Says whether the client waits for one answer at a time and has it now: its next request may come at
    /// once.
    fn expect(&mut self, _soon: bool) {}
}
