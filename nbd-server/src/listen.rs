//! Listening sockets: bound with clear errors, accepted from without spinning.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use common::uri::{Tls, Transport, Uri};
use listenfd::ListenFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::transport::Socket;

/// How long accepting rests when descriptors have run out: the wait for some connection to end.
pub(crate) const ACCEPT_REST: Duration = Duration::from_millis(200);

/// A socket that clients connect to.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; its file is removed at the end, if it is ours.
    Unix(UnixListener, Option<SocketFile>),
    /// Of virtual machines, or of the host of this one.
    Vsock(VsockListener),
}

/// The file of a Unix socket, removed when dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _may_be_gone = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on a TCP address.
    pub async fn tcp(address: SocketAddr) -> anyhow::Result<Listener> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Listener::Tcp(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                bail!("cannot listen on {address}: the port is taken; choose another with --listen")
            }
            Err(error) => Err(error).with_context(|| format!("cannot listen on {address}")),
        }
    }

    /// Listens on a Unix socket.
    pub fn unix(path: &Path) -> anyhow::Result<Listener> {
        let (listener, file) = unix_socket(path)?;
        Ok(Listener::Unix(listener, Some(file)))
    }

    /// Listens on a vsock port, to every virtual machine of this host.
    pub fn vsock(port: u32) -> anyhow::Result<Listener> {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
        let listener = listener.with_context(|| format!("cannot listen on vsock port {port}"))?;
        Ok(Listener::Vsock(listener))
    }

    /// The sockets that were opened for this process by whoever started it (`sd_listen_fds(3)`).
    pub fn inherited() -> anyhow::Result<Vec<Listener>> {
        let mut given = ListenFd::from_env();
        (0..given.len()).map(|number| Listener::adopt(&mut given, number)).collect()
    }

    fn adopt(given: &mut ListenFd, number: usize) -> anyhow::Result<Listener> {
        let which = || format!("inherited socket {number} is no listening TCP or Unix socket");
        if let Ok(Some(listener)) = given.take_unix_listener(number) {
            listener.set_nonblocking(true)?;
            return Ok(Listener::Unix(UnixListener::from_std(listener).with_context(which)?, None));
        }
        let listener = given.take_tcp_listener(number).with_context(which)?.with_context(which)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(TcpListener::from_std(listener).with_context(which)?))
    }

    /// Where clients connect, as a URI.
    pub fn uri(&self) -> io::Result<Uri> {
        let transport = match self {
            Listener::Tcp(listener) => {
                let address = listener.local_addr()?;
                Transport::Tcp { host: address.ip().to_string(), port: address.port() }
            }
            Listener::Unix(listener, _) => {
                let address = listener.local_addr()?;
                let path =
                    address.as_pathname().ok_or_else(|| io::Error::other("a Unix socket without a path"))?;
                Transport::Unix { path: std::path::absolute(path)? }
            }
            Listener::Vsock(listener) => {
                // From outside this machine has another number, which it can ask for if it is a guest.
                let cid = vsock::get_local_cid().unwrap_or(VMADDR_CID_HOST);
                Transport::Vsock { cid, port: listener.local_addr()?.port() }
            }
        };
        Ok(Uri { transport, tls: Tls::Off, export: String::new(), certificates: None })
    }

    /// The next client. When descriptors have run out it rests until there may be one again.
    pub async fn accept(&self) -> Socket {
        let mut told = false;
        loop {
            let accepted = match self {
                Listener::Tcp(listener) => listener.accept().await.and_then(|(s, peer)| Socket::tcp(s, peer)),
                Listener::Unix(listener, _) => listener.accept().await.and_then(|(s, _)| Socket::unix(s)),
                Listener::Vsock(listener) => listener.accept().await.map(|(s, peer)| Socket::vsock(s, peer)),
            };
            match accepted {
                Ok(socket) => return socket,
                Err(error) => {
                    match std::mem::replace(&mut told, true) {
                        false => tracing::warn!(%error, "cannot accept connections for now"),
                        true => tracing::debug!(%error, "still cannot accept connections"),
                    }
                    sleep(ACCEPT_REST).await;
                }
            }
        }
    }
}

/// Descriptors beside those of connections and exports: listeners, the runtimes' own.
const DESCRIPTORS_SPARE: u64 = 256;
/// Descriptors of an export at most: its storage, opened for requests and syncs, its lock, and its epoch's record.
const DESCRIPTORS_PER_EXPORT: u64 = 7;

/// Raises the soft limit of descriptors to the hard one, and warns where so many connections and exports need
/// more. Programs that wait with `select(2)` are why the soft limit is low; this one does not.
pub fn raise_descriptor_limit(connections_max: usize, exports: usize) {
    let wanted = connections_max as u64 + exports as u64 * DESCRIPTORS_PER_EXPORT + DESCRIPTORS_SPARE;
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        nix::Result::Ok(hard)
    };
    match raise() {
        Ok(hard) if hard < wanted => tracing::warn!(
            limit = hard,
            wanted,
            "there may be fewer descriptors (ulimit -Hn) than --max-connections and the exports need"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of descriptors"),
    }
}

/// A listening Unix socket. The file of a server that was killed is replaced, that of a living one
/// refused.
pub fn unix_socket(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let shown = path.display();
    recording::vacate(path).with_context(|| format!("cannot listen on {shown}"))?;
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
    Ok((listener, SocketFile(path.to_owned())))
}
