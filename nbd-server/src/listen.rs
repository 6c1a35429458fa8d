//! Listening sockets: bound with clear errors, accepted from without spinning.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use common::uri::{Tls, Transport, Uri};
use listenfd::ListenFd;
use nix::net::if_::if_nameindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::confine::UnixAccess;
use crate::transport::Socket;

/// How long accepting rests when descriptors have run out: the wait for some connection to end.
pub(crate) const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;

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
    /// Listens on TCP addresses. `[::]` has those of IPv4, too, unless 0.0.0.0 is among them with the same port, or the
    /// kernel has no IPv6.
    pub fn tcp(addresses: &[SocketAddr]) -> anyhow::Result<Vec<Listener>> {
        let is_listed = |address: &SocketAddr| {
            address.port() != 0 && addresses.contains(&(Ipv4Addr::UNSPECIFIED, address.port()).into())
        };
        let listen = |address: &SocketAddr| {
            let families = if is_listed(address) { Families::One } else { Families::Both };
            match bind(*address, families) {
                Err(error) if no_ipv6(&error) && address.ip().is_unspecified() && !is_listed(address) => {
                    bind((Ipv4Addr::UNSPECIFIED, address.port()).into(), families)
                }
                bound => bound,
            }
        };
        let explained = |address: &SocketAddr| {
            let explain = |error: io::Error| match error.kind() {
                io::ErrorKind::AddrInUse => {
                    anyhow!("cannot listen on {address}: the port is taken; choose another with --listen")
                }
                _ if no_ipv6(&error) => {
                    anyhow!("cannot listen on {address}: this machine has no IPv6; choose an address of IPv4")
                }
                _ => anyhow!("cannot listen on {address}: {error}"),
            };
            listen(address).map(Listener::Tcp).map_err(explain)
        };
        addresses.iter().map(explained).collect()
    }

    /// Listens on a Unix socket.
    pub fn unix(path: &Path, access: UnixAccess) -> anyhow::Result<Listener> {
        let (listener, file) = unix_socket(path, access)?;
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
                Transport::Tcp { host: host(&address), port: address.port() }
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

/// Which families an IPv6 socket without an address takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Families {
    One,
    Both,
}

fn bind(address: SocketAddr, families: Families) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        set_ipv6_v6only(&socket, families == Families::One)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// An address without its port, and with its zone by name.
fn host(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            let name = if_nameindex().ok().and_then(|all| {
                let found = all.iter().find(|it| it.index() == v6.scope_id())?;
                Some(found.name().to_string_lossy().into_owned())
            });
            format!("{}%{}", v6.ip(), name.unwrap_or_else(|| v6.scope_id().to_string()))
        }
        other => other.ip().to_string(),
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
pub fn unix_socket(path: &Path, access: UnixAccess) -> anyhow::Result<(UnixListener, SocketFile)> {
    let shown = path.display();
    recording::vacate(path).with_context(|| format!("cannot listen on {shown}"))?;
    access.apply(path, || {
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
        Ok((listener, SocketFile(path.to_owned())))
    })
}
