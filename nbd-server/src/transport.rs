//! Connected sockets, on their way from the thread that accepts to the worker that serves.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, UnixStream};

/// A connected socket that belongs to no runtime.
pub enum Socket {
    /// TCP.
    Tcp(std::net::TcpStream, SocketAddr),
    /// Unix.
    Unix(std::os::unix::net::UnixStream),
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

    /// Gives the socket to the runtime of this thread.
    pub fn adopt(self) -> io::Result<Stream> {
        Ok(match self {
            Socket::Tcp(stream, _) => Stream::Tcp(TcpStream::from_std(stream)?),
            Socket::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Socket::Tcp(_, peer) => write!(f, "{peer}"),
            Socket::Unix(_) => f.write_str("unix"),
        }
    }
}

/// A connected socket of this thread's runtime.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}
