//! A plain socket as a session sees it: the next request of a client that sends one at a time is looked for
//! before the thread sleeps.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::io::{AsyncRead, AsyncWrite};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::net::{TcpStream, UnixStream};
use tokio_vsock::VsockStream;

use super::Adapted;
use crate::engine::Seat;

/// A client that took no longer than so many times what a thread may look for its next request is soon
/// back: to fall asleep and to wake up has its part in what was measured.
const SOON: u32 = 3;
/// To look for less is not worth while.
const LEAST: Duration = Duration::from_micros(2);

/// A socket of the runtime.
pub trait Plain: tokio::io::AsyncRead + tokio::io::AsyncWrite + AsFd + Unpin {}

impl Plain for TcpStream {}
impl Plain for UnixStream {}
impl Plain for VsockStream {}

/// A plain socket of one connection.
pub struct Direct<S> {
    stream: Adapted<S>,
    watch: Watch,
}

impl<S: Plain> Direct<S> {
    /// A socket whose next request is looked for up to `busy_poll`, for as long as nobody shares the thread.
    pub fn new(stream: Adapted<S>, seat: Arc<Seat>, busy_poll: Duration) -> Direct<S> {
        let watch = Watch { seat, most: busy_poll, now: Duration::ZERO, waiting: None, expected: false };
        Direct { stream, watch }
    }

    /// The socket.
    pub fn into_inner(self) -> S {
        self.stream.0
    }

    /// Says whether the next request may come at once.
    pub fn expect(&mut self, soon: bool) {
        self.watch.expected = soon;
    }
}

impl<S: Plain> AsyncRead for Direct<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Direct { stream, watch } = &mut *self;
        let mut read = Pin::new(&mut *stream).poll_read(cx, buf);
        if read.is_pending() && watch.goes_on() {
            match rustix::net::recv(&stream.0, buf, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    std::thread::yield_now();
                    cx.waker().wake_by_ref();
                }
                received => read = Poll::Ready(received.map(|(len, _)| len).map_err(io::Error::from)),
            }
        }
        if read.is_ready() {
            watch.ends();
        }
        read
    }
}

impl<S: Plain> AsyncWrite for Direct<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// How long to look for the next request before the thread sleeps: not at all unless the last waits were
/// short, so that a client at rest costs nothing.
struct Watch {
    seat: Arc<Seat>,
    most: Duration,
    /// At present.
    now: Duration,
    /// Since when the next request is awaited.
    waiting: Option<Instant>,
    expected: bool,
}

impl Watch {
    /// Nothing has come: whether to look again at once.
    fn goes_on(&mut self) -> bool {
        if !self.expected || self.most.is_zero() || self.seat.connections() > 1 {
            self.waiting = None;
            return false;
        }
        match self.waiting {
            Some(since) => since.elapsed() < self.now,
            None => {
                self.waiting = Some(Instant::now());
                !self.now.is_zero()
            }
        }
    }

    /// Something has come.
    fn ends(&mut self) {
        if let Some(since) = self.waiting.take() {
            let was_short = since.elapsed() <= self.most * SOON;
            self.now = if was_short { self.most } else { self.now / 2 };
            if self.now < LEAST {
                self.now = Duration::ZERO;
            }
        }
    }
}
