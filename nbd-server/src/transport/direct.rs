//! A plain socket as a session sees it: files are sent from where they are, and the next request of a
//! client that sends one at a time is looked for before the thread sleeps.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::io::{AsyncRead, AsyncWrite};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::Interest;
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
pub trait Plain: tokio::io::AsyncRead + tokio::io::AsyncWrite + AsFd + Unpin {
    /// Whether files can be sent through it.
    const SENDS_FILES: bool;

    /// Does `work`, which sends, once there is room.
    fn poll_sending(
        &self,
        cx: &mut Context<'_>,
        work: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;
}

macro_rules! plain {
    ($stream:ty) => {
        impl Plain for $stream {
            const SENDS_FILES: bool = true;

            fn poll_sending(
                &self,
                cx: &mut Context<'_>,
                mut work: impl FnMut() -> io::Result<usize>,
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    match self.try_io(Interest::WRITABLE, &mut work) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        done => return Poll::Ready(done),
                    }
                }
            }
        }
    };
}

plain!(TcpStream);
plain!(UnixStream);

impl Plain for VsockStream {
    const SENDS_FILES: bool = false;

    fn poll_sending(
        &self,
        _: &mut Context<'_>,
        _: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Whether what is sent may have to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// It lies in memory.
    Never,
    /// It may have to come from a disk.
    Possible,
}

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

    /// Whether files can be sent through it.
    pub fn sends_files(&self) -> bool {
        S::SENDS_FILES
    }

    /// Sends some of `len` bytes of a file, from its byte `at` on. What may wait for a disk is sent only where that
    /// holds up nobody else.
    pub fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        file: &File,
        range: Range<u64>,
        waiting: Waiting,
    ) -> Poll<io::Result<usize>> {
        let (socket, seat) = (&self.stream.0, &self.watch.seat);
        if waiting == Waiting::Possible && !seat.may_block() {
            return Poll::Ready(Err(io::ErrorKind::ResourceBusy.into()));
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let sent = ready!(socket.poll_sending(cx, || {
            let mut at = range.start;
            let (sent, _) = seat.run(|| rustix::fs::sendfile(socket, file, Some(&mut at), len));
            Ok(sent?)
        }))?;
        // The file has become shorter.
        Poll::Ready(if sent > 0 { Ok(sent) } else { Err(io::ErrorKind::UnexpectedEof.into()) })
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
