//! Two byte streams joined back to back, unbounded, on one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures::io::{AsyncRead, AsyncWrite};

#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    closed: bool,
    reader: Option<Waker>,
}

/// One end of a pair.
pub(crate) struct End {
    incoming: Rc<RefCell<Lane>>,
    outgoing: Rc<RefCell<Lane>>,
}

/// Two ends: what is written to one is read from the other.
pub(crate) fn duplex() -> (End, End) {
    let (one, other) = (Rc::<RefCell<Lane>>::default(), Rc::<RefCell<Lane>>::default());
    (End { incoming: one.clone(), outgoing: other.clone() }, End { incoming: other, outgoing: one })
}

impl End {
    /// Writes at once.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let mut lane = self.outgoing.borrow_mut();
        lane.bytes.extend(bytes);
        lane.reader.take().into_iter().for_each(Waker::wake);
    }

    /// Takes `len` bytes if they are there.
    pub(crate) fn take(&self, len: usize) -> Option<Vec<u8>> {
        let mut lane = self.incoming.borrow_mut();
        (lane.bytes.len() >= len).then(|| lane.bytes.drain(..len).collect())
    }

    /// Nothing more will be written.
    pub(crate) fn close(&self) {
        let mut lane = self.outgoing.borrow_mut();
        lane.closed = true;
        lane.reader.take().into_iter().for_each(Waker::wake);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
    }
}

impl nbd_server::session::Stream for End {}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.incoming.borrow_mut();
        if lane.bytes.is_empty() && !lane.closed {
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(io::Read::read(&mut lane.bytes, buf))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.send(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}
