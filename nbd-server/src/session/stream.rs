//! What a connection goes over: bytes both ways, and what some streams can do besides.

use std::io;
use std::task::{Context, Poll};

use futures::io::{AsyncRead, AsyncWrite};

use crate::device::Loan;

/// A stream to a client.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Whether [`Stream::poll_lend`] can be called.
    fn lends(&self) -> bool {
        false
    }

    /// Sends some of a loan, from its byte `from` on, without a copy of ours. Fails with
    /// [`io::ErrorKind::ResourceBusy`] where that might hold up others, who share the thread: then it must be read.
    fn poll_lend(&mut self, _cx: &mut Context<'_>, _loan: &Loan, _from: usize) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Says whether the client waits for one answer at a time and has it now: its next request may come at
    /// once.
    fn expect(&mut self, _soon: bool) {}
}
