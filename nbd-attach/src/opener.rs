//! Connections to one server, as many as are wanted, each ready for the kernel: dialled, encrypted where the URI
//! says so, and through with the handshake.

use crate::dial::{DialError, Known, Link, dial};
use crate::negotiate::{NegotiateError, ask, negotiate, start_tls};
use crate::tls::kernel::{Cipher, hand_over};
use crate::tls::record::RecordReader;
use crate::tls::{Connector, TlsError};
use common::handshake::Export;
use common::handshake::client::{Answer, Client};
use common::uri::Uri;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Opens connections to one export.
pub struct Opener<'a> {
    uri: &'a Uri,
    tls: Option<&'a Connector>,
    known: Known,
}

/// Who is connected with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ends {
    /// Over TCP.
    Tcp {
        /// Here.
        local: SocketAddr,
        /// There.
        peer: SocketAddr,
    },
    /// On this machine.
    Unix {
        /// The server's process.
        server: i32,
    },
}

/// A connection on which transmission has begun.
#[derive(Debug)]
pub struct Opened {
    /// For the kernel.
    pub socket: OwnedFd,
    /// Its ends; none if they cannot be told.
    pub ends: Option<Ends>,
    /// What the server said.
    pub export: Export,
    /// What the kernel encrypts it with.
    pub cipher: Option<Cipher>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody there.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No handshake.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// Not encrypted.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operating system failed us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<'a> Opener<'a> {
    /// For the export of a URI, encrypted if there is something to encrypt with.
    pub fn new(uri: &'a Uri, tls: Option<&'a Connector>) -> Opener<'a> {
        Opener { uri, tls, known: Known::default() }
    }

    /// The same, with the addresses that earlier connections led to, so that no name has to be looked up.
    pub fn knowing(uri: &'a Uri, tls: Option<&'a Connector>, ends: &[Option<Ends>]) -> Opener<'a> {
        let peers = ends.iter().flatten().filter_map(|ends| match ends {
            Ends::Tcp { peer, .. } => Some(*peer),
            Ends::Unix { .. } => None,
        });
        Opener { known: Known::from_iter(peers), ..Opener::new(uri, tls) }
    }

    /// Opens one. Connecting, TLS and the handshake may each take that long.
    ///
    /// # Errors
    /// Any of them failed; whatever there was is closed.
    pub async fn open(&self, patience: Duration) -> Result<Opened, OpenError> {
        let name = &self.uri.export;
        let link = dial(&self.uri.transport, &self.known, patience).await?;
        let ends = ends(&link).ok();
        match (self.tls, link) {
            (None, mut link) => {
                let export = negotiate(link.stream(), name, patience).await?;
                Ok(Opened { socket: link.into_fd()?, ends, export, cipher: None })
            }
            (Some(connector), Link::Tcp(stream)) => {
                let opened = open_encrypted(stream, connector, name, patience).await?;
                Ok(Opened { ends, ..opened })
            }
            (Some(_), Link::Unix(_) | Link::Vsock(_)) => Err(TlsError::OnlyTcp.into()),
        }
    }

    /// Puts one question on a connection of its own.
    ///
    /// # Errors
    /// There is no connection, or no answer.
    pub async fn ask(&self, client: Client, patience: Duration) -> Result<Answer, OpenError> {
        let mut link = dial(&self.uri.transport, &self.known, patience).await?;
        let Some(connector) = self.tls else {
            return Ok(ask(link.stream(), client, patience).await?);
        };
        let rest = start_tls(link.stream(), client, patience).await?;
        let upgrade = timeout(patience, connector.upgrade(link.stream())).await;
        let mut encrypted = upgrade.map_err(|_| NegotiateError::Deadline(patience))??;
        Ok(rest.ask(&mut encrypted, patience).await?)
    }
}

fn ends(link: &Link) -> io::Result<Ends> {
    let none = || io::Error::from(io::ErrorKind::Unsupported);
    match link {
        Link::Tcp(stream) => Ok(Ends::Tcp { local: stream.local_addr()?, peer: stream.peer_addr()? }),
        Link::Unix(stream) => Ok(Ends::Unix { server: stream.peer_cred()?.pid().ok_or_else(none)? }),
        Link::Vsock(_) => Err(none()),
    }
}

/// The whole negotiation is done by rustls, which thereby sees whatever a server has to say about the session
/// itself, such as tickets; then the kernel gets the keys.
async fn open_encrypted(
    mut stream: TcpStream,
    connector: &Connector,
    name: &str,
    patience: Duration,
) -> Result<Opened, OpenError> {
    let client = Client::new(name).map_err(NegotiateError::from)?;
    let rest = start_tls(&mut stream, client, patience).await?;
    let upgrade = timeout(patience, connector.upgrade(RecordReader::new(stream))).await;
    let mut encrypted = upgrade.map_err(|_| NegotiateError::Deadline(patience))??;
    let export = rest.negotiate(&mut encrypted, patience).await?;
    let (stream, cipher) = hand_over(encrypted).map_err(TlsError::from)?;
    tracing::debug!("encrypted by {:?}", cipher.suite);
    Ok(Opened { socket: stream.into_std()?.into(), ends: None, export, cipher: Some(cipher) })
}
