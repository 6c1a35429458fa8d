//! Connected sockets, on their way from the thread that accepts to the worker that serves.

mod direct;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::{AsyncRead, AsyncWrite};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::ReadBuf;
use tokio::net::{TcpStream, UnixStream};
use tokio_vsock::{VsockAddr, VsockStream};

/// A connected socket that belongs to no runtime.
pub enum Socket {
    /// TCP.
    Tcp(std::net::TcpStream, SocketAddr),
    /// Unix.
    Unix(std::os::unix::net::UnixStream),
    /// From or to a virtual machine.
    Vsock(OwnedFd, VsockAddr),
}

impl Socket {
    /// Takes an accepted TCP connection. Replies go at once (TCP_NODELAY), and a client whose
    /// host has vanished is noticed (SO_KEEPALIVE).
    pub fn tcp(stream: TcpStream, peer: SocketAddr) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        // Noticed after a minute of silence and five unanswered probes, ten seconds apart.
        setsockopt(&stream, sockopt::TcpKeepIdle, &60)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &10)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &5)?;
        Ok(Socket::Tcp(stream, peer))
    }

    /// Takes an accepted Unix connection.
    pub fn unix(stream: UnixStream) -> io::Result<Socket> {
        Ok(Socket::Unix(stream.into_std()?))
    }

    /// Takes an accepted connection of a virtual machine.
    #[must_use]
    pub fn vsock(stream: VsockStream, peer: VsockAddr) -> Socket {
        Socket::Vsock(stream.into(), peer)
    }

    /// Gives the socket to the runtime of this thread.
    pub fn adopt(self) -> io::Result<Stream> {
        Ok(match self {
            Socket::Tcp(stream, _) => Stream::Tcp(TcpStream::from_std(stream)?),
            Socket::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
            Socket::Vsock(stream, _) => Stream::Vsock(VsockStream::new(vsock::VsockStream::from(stream))?),
        })
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Socket::Tcp(_, peer) => write!(f, "{peer}"),
            Socket::Unix(_) => f.write_str("unix"),
            Socket::Vsock(_, peer) => write!(f, "vsock:{}:{}", peer.cid(), peer.port()),
        }
    }
}

/// A connected socket of this thread's runtime.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
    /// From or to a virtual machine.
    Vsock(VsockStream),
}

pub use direct::{Direct, Plain, Waiting};

/// A stream of the runtime as a session sees it. Unlike the adapter of tokio-util it passes
/// vectored writes on: many replies leave in one system call.
pub struct Adapted<S>(pub S);

impl<S: tokio::io::AsyncRead + Unpin> AsyncRead for Adapted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> AsyncWrite for Adapted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
