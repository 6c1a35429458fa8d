//! Sockets as the kernel driver wants to inherit them.
//!
//! TCP without delay and with keepalive, so that a peer that vanished while the device was idle is
//! noticed; Unix with a large send buffer; no receive timeout, which would kill an idle device;
//! closed on exec.

use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_vsock::{VsockAddr, VsockStream};

/// A silent TCP peer is asked for a sign of life after this long …
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
/// … again after this long …
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
/// … and given up after so many. Two minutes in all: nobody redials, so a short cut of the link
/// must not cost an idle device. With requests in flight the driver's own timeout is what counts.
const KEEPALIVE_PROBES: u32 = 6;

/// The same where somebody redials: a peer is given up after some ten seconds.
const HASTE_SECONDS: u32 = 3;
const HASTE_PROBES: u32 = 3;

/// Room for several of the driver's requests: before Linux 6.13 it mishandles a send that a signal
/// cuts short, which only happens when it has to wait for room.
const UNIX_SEND_BUFFER_BYTES: usize = 4 << 20;

/// Between two tries on a Unix socket whose queue is full, where there is nothing to poll for.
const UNIX_RETRY: Duration = Duration::from_millis(50);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name means nothing.
    #[error("the host name {host:?} could not be resolved: {error}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        error: io::Error,
    },
    /// No address answered.
    #[error("could not connect to {peer}: {}", worded(error))]
    Connect {
        /// The last address tried.
        peer: String,
        /// Why.
        error: io::Error,
    },
    /// Too slow.
    #[error("{peer} did not answer within {} s", .patience.as_secs())]
    Deadline {
        /// Who.
        peer: String,
        /// How long it had.
        patience: Duration,
    },
}

fn worded(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused (no server is listening there)".into(),
        io::ErrorKind::NotFound => "there is no such socket (is the server running?)".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

/// A connected stream of either kind.
#[derive(Debug)]
pub enum Link {
    /// Over IP.
    Tcp(TcpStream),
    /// Over a path.
    Unix(UnixStream),
    /// From or to a virtual machine; the driver takes none, but one may ask over it.
    Vsock(VsockStream),
}

/// What a handshake needs of a link.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Link {
    /// For the handshake.
    pub fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Link::Tcp(stream) => stream,
            Link::Unix(stream) => stream,
            Link::Vsock(stream) => stream,
        }
    }

    /// For the kernel.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Link::Tcp(stream) => stream.into_std()?.into(),
            Link::Unix(stream) => stream.into_std()?.into(),
            Link::Vsock(stream) => stream.into(),
        })
    }
}

/// Has a TCP connection noticed as dead soon, whether it is at rest or in the midst of something; for those
/// who can make another one. Any other socket needs no such thing.
pub fn hasten(socket: &impl AsFd, timeout: Duration) {
    let unanswered = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let set = [
        setsockopt(socket, sockopt::TcpKeepIdle, &HASTE_SECONDS),
        setsockopt(socket, sockopt::TcpKeepInterval, &HASTE_SECONDS),
        setsockopt(socket, sockopt::TcpKeepCount, &HASTE_PROBES),
        setsockopt(socket, sockopt::TcpUserTimeout, &unanswered),
    ];
    if let Some(error) = set.into_iter().find_map(Result::err) {
        tracing::debug!("no haste about a connection: {error}");
    }
}

/// One place where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address.
    Tcp(SocketAddr),
    /// A socket's path.
    Unix(PathBuf),
    /// A port of a machine, virtual or its host.
    Vsock {
        /// The machine.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// Connects within `patience`.
pub async fn dial(to: &Place, patience: Duration) -> Result<Link, DialError> {
    let until = Instant::now() + patience;
    match to {
        Place::Tcp(address) => dial_tcp(*address, patience).await.map(Link::Tcp),
        Place::Unix(path) => dial_unix(path, until, patience).await.map(Link::Unix),
        Place::Vsock { cid, port } => dial_vsock(*cid, *port, until, patience).await.map(Link::Vsock),
    }
}

async fn dial_vsock(
    cid: u32,
    port: u32,
    until: Instant,
    patience: Duration,
) -> Result<VsockStream, DialError> {
    let peer = || format!("vsock {cid}:{port}");
    match timeout_at(until, VsockStream::connect(VsockAddr::new(cid, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(DialError::Connect { peer: peer(), error }),
        Err(_) => Err(DialError::Deadline { peer: peer(), patience }),
    }
}

/// The addresses of a host, looked up within `patience`.
pub async fn look_up(host: &str, port: u16, patience: Duration) -> Result<Vec<SocketAddr>, DialError> {
    match timeout(patience, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(DialError::Resolve { host: host.to_owned(), error }),
        Err(_) => Err(DialError::Deadline { peer: format!("the resolver, asked for {host:?},"), patience }),
    }
}

async fn dial_tcp(address: SocketAddr, patience: Duration) -> Result<TcpStream, DialError> {
    let peer = address.to_string();
    match timeout(patience, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => match prepare_tcp(&stream) {
            Ok(()) => Ok(stream),
            Err(error) => Err(DialError::Connect { peer, error }),
        },
        Ok(Err(error)) => Err(DialError::Connect { peer, error }),
        Err(_) => Err(DialError::Deadline { peer, patience }),
    }
}

fn prepare_tcp(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::TcpNoDelay, &true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    Ok(())
}

async fn dial_unix(path: &PathBuf, until: Instant, patience: Duration) -> Result<UnixStream, DialError> {
    let peer = || path.display().to_string();
    loop {
        match timeout_at(until, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => {
                enlarge_send_buffer(&stream, path);
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                sleep(UNIX_RETRY).await;
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(DialError::Deadline { peer: peer(), patience });
            }
            Ok(Err(error)) => return Err(DialError::Connect { peer: peer(), error }),
            Err(_) => return Err(DialError::Deadline { peer: peer(), patience }),
        }
    }
}

fn enlarge_send_buffer(stream: &UnixStream, path: &Path) {
    // Forced past the system's limit where root may; the plain request is better than nothing.
    let forced = setsockopt(stream, sockopt::SndBufForce, &UNIX_SEND_BUFFER_BYTES);
    let result = forced.or_else(|_| setsockopt(stream, sockopt::SndBuf, &UNIX_SEND_BUFFER_BYTES));
    if let Err(error) = result {
        tracing::debug!("the send buffer of {} stays small: {error}", path.display());
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
