//! Connections to one server, as many as are wanted, each ready for the kernel: dialled, encrypted where the URI
//! says so, and through with the handshake.

mod error;

pub use error::OpenError;

use crate::dial::{DialError, Link, Place, Stream, dial, look_up};
use crate::negotiate::{NegotiateError, ask, negotiate, start_tls};
use crate::same::{self, Told, epoch_of, hinted_epoch};
use crate::superblock;
use crate::tls::kernel::{Cipher, hand_over};
use crate::tls::record::RecordReader;
use crate::tls::{Connector, TlsError};
use common::handshake::Export;
use common::handshake::client::{Answer, Client, ClientError};
use common::uri::{Transport, Uri};
use error::worse;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a server is asked for an epoch that it probably does not have.
const CURIOSITY: Duration = Duration::from_secs(1);

/// Opens connections to one export.
pub struct Opener<'a> {
    uri: &'a Uri,
    tls: Option<&'a Connector>,
    /// Where the server was found last, so that no name has to be looked up while it is there: where names are looked
    /// up might be what is being dialled for.
    known: RefCell<Vec<Place>>,
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
    pub told: Told,
    /// What the kernel encrypts it with.
    pub cipher: Option<Cipher>,
}

/// What is known of a server that is to be connected to.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'t> {
    /// Nothing.
    Anything,
    /// What it said before, and that the device has so many bytes.
    Same(&'t Told, u64),
}

impl<'a> Opener<'a> {
    /// For the export of a URI, encrypted if there is something to encrypt with.
    pub fn new(uri: &'a Uri, tls: Option<&'a Connector>) -> Opener<'a> {
        Opener { uri, tls, known: RefCell::default() }
    }

    /// The same, with the addresses that earlier connections led to.
    pub fn knowing(uri: &'a Uri, tls: Option<&'a Connector>, ends: &[Option<Ends>]) -> Opener<'a> {
        let mut known: Vec<Place> = vec![];
        for ends in ends.iter().flatten() {
            if let Ends::Tcp { peer, .. } = ends
                && !known.contains(&Place::Tcp(*peer))
            {
                known.push(Place::Tcp(*peer));
            }
        }
        Opener { known: RefCell::new(known), ..Opener::new(uri, tls) }
    }

    /// Forgets the addresses, so that the name is looked up again.
    pub fn forget_addresses(&self) {
        self.known.borrow_mut().clear();
    }

    /// Opens one to a server that is as expected, at whichever of its addresses one is. Connecting, TLS and the
    /// handshake may each take that long.
    ///
    /// # Errors
    /// There is none; whatever there was is closed.
    pub async fn open(&self, expected: Expected<'_>, patience: Duration) -> Result<Opened, OpenError> {
        self.anywhere(patience, async |place: &Place, dialling| {
            let opened = self.open_at(place, expected, dialling, patience).await?;
            match expected {
                Expected::Anything => {}
                Expected::Same(before, size) => same::check(before, size, &opened.told)?,
            }
            Ok(opened)
        })
        .await
    }

    /// Puts one question on a connection of its own.
    ///
    /// # Errors
    /// There is no connection, or no answer.
    pub async fn ask(
        &self,
        client: impl Fn() -> Result<Client, ClientError>,
        patience: Duration,
    ) -> Result<Answer, OpenError> {
        self.anywhere(patience, async |place: &Place, dialling| {
            let client = client().map_err(NegotiateError::from)?;
            self.ask_at(place, client, dialling, patience).await
        })
        .await
    }

    /// What lies on the disk, asked on a connection of its own.
    ///
    /// # Errors
    /// There is no connection, or no answer.
    pub async fn identity(&self, patience: Duration) -> Result<Option<String>, OpenError> {
        self.anywhere(patience, async |place: &Place, dialling| {
            let mut link = dial(place, dialling).await?;
            let name = &self.uri.export;
            let look = async {
                let Some(connector) = self.tls else {
                    let export = negotiate(link.stream(), name, patience).await?;
                    return look(link.stream(), export.size).await;
                };
                let client = Client::new(name).map_err(NegotiateError::from)?;
                let rest = start_tls(link.stream(), client, patience).await?;
                let mut encrypted = connector.upgrade(link.stream()).await?;
                let export = rest.negotiate(&mut encrypted, patience).await?;
                look(&mut encrypted, export.size).await
            };
            timeout(patience, look).await.map_err(|_| NegotiateError::Deadline(patience))?
        })
        .await
    }

    /// Tries every place, those that are known first and then those that the name leads to now. One where somebody
    /// answers who does not serve is no better than one where nobody does.
    async fn anywhere<T>(
        &self,
        patience: Duration,
        attempt: impl AsyncFn(&Place, Duration) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let known = self.known.borrow().clone();
        let mut failure = None;
        for tried in [known.clone(), vec![]] {
            let places = if tried.is_empty() { self.look_up(patience).await } else { Ok(tried) };
            let places = match places {
                Ok(places) => places,
                // What is wrong with an address says more than what is wrong with its name.
                Err(error) => return Err(worse(failure, error)),
            };
            let first_look = failure.is_none();
            for place in places.iter().filter(|place| first_look || !known.contains(place)) {
                // One that swallows packets must leave time for the others.
                let share = patience / u32::try_from(places.len().max(1)).unwrap_or(u32::MAX);
                match attempt(place, share).await {
                    Ok(done) => {
                        let others = places.iter().filter(|other| *other != place);
                        *self.known.borrow_mut() = std::iter::once(place).chain(others).cloned().collect();
                        return Ok(done);
                    }
                    Err(error) => failure = Some(worse(failure, error)),
                }
            }
            if known.is_empty() {
                break;
            }
        }
        let nothing = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        Err(failure
            .unwrap_or_else(|| DialError::Connect { peer: "the server".into(), error: nothing }.into()))
    }

    async fn look_up(&self, patience: Duration) -> Result<Vec<Place>, OpenError> {
        Ok(match &self.uri.transport {
            Transport::Tcp { host, port } => {
                look_up(host, *port, patience).await?.into_iter().map(Place::Tcp).collect()
            }
            Transport::Unix { path } => vec![Place::Unix(path.clone())],
            Transport::Vsock { cid, port } => vec![Place::Vsock { cid: *cid, port: *port }],
        })
    }

    async fn open_at(
        &self,
        place: &Place,
        expected: Expected<'_>,
        dialling: Duration,
        patience: Duration,
    ) -> Result<Opened, OpenError> {
        let name = &self.uri.export;
        let link = dial(place, dialling).await?;
        let ends = ends(&link).ok();
        let mut opened = match (self.tls, link) {
            (None, mut link) => {
                let export = negotiate(link.stream(), name, patience).await?;
                let identity = identified(link.stream(), expected, &export, patience).await?;
                let told = Told { export, epoch: None, identity };
                Opened { socket: link.into_fd()?, ends, told, cipher: None }
            }
            (Some(connector), Link::Tcp(stream)) => {
                let opened = open_encrypted(stream, connector, name, expected, patience).await?;
                Opened { ends, ..opened }
            }
            (Some(_), Link::Unix(_) | Link::Vsock(_)) => return Err(TlsError::OnlyTcp.into()),
        };
        opened.told.epoch = self.epoch(place, expected, &opened.told.export, patience).await;
        Ok(opened)
    }

    /// The epoch of an export to which a connection has just been made. It is a metadata context, which the kernel's
    /// driver cannot be given a connection with, so it is asked for on another one: later, because a server that has
    /// ended in between has taken the first connection with it.
    async fn epoch(
        &self,
        place: &Place,
        expected: Expected<'_>,
        export: &Export,
        patience: Duration,
    ) -> Option<String> {
        let hint = hinted_epoch(export);
        let had_none = matches!(expected, Expected::Same(before, _) if before.epoch.is_none());
        if hint.is_none() && had_none {
            return None;
        }
        // Servers that serve one connection at a time let the next one wait for ever.
        let patience = if hint.is_some() { patience } else { patience.min(CURIOSITY) };
        let client = Client::info(&self.uri.export).ok()?;
        match self.ask_at(place, client, patience, patience).await {
            Ok(Answer::Export(offer)) => epoch_of(&offer.contexts),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!("the epoch was not told: {error}");
                hint
            }
        }
    }

    async fn ask_at(
        &self,
        place: &Place,
        client: Client,
        dialling: Duration,
        patience: Duration,
    ) -> Result<Answer, OpenError> {
        let mut link = dial(place, dialling).await?;
        let Some(connector) = self.tls else {
            return Ok(ask(link.stream(), client, patience).await?);
        };
        let rest = start_tls(link.stream(), client, patience).await?;
        let upgrade = timeout(patience, connector.upgrade(link.stream())).await;
        let mut encrypted = upgrade.map_err(|_| NegotiateError::Deadline(patience))??;
        Ok(rest.ask(&mut encrypted, patience).await?)
    }
}

async fn look<S: Stream + ?Sized>(stream: &mut S, size: u64) -> Result<Option<String>, OpenError> {
    let identity = superblock::identity(stream, size).await?;
    superblock::disconnect(stream).await?;
    Ok(identity)
}

/// What lies on a disk of which that is known.
async fn identified<S: Stream + ?Sized>(
    stream: &mut S,
    expected: Expected<'_>,
    export: &Export,
    patience: Duration,
) -> Result<Option<String>, OpenError> {
    match expected {
        Expected::Same(before, _) if before.identity.is_some() => {
            let identity = timeout(patience, superblock::identity(stream, export.size)).await;
            Ok(identity.map_err(|_| NegotiateError::Deadline(patience))??)
        }
        _ => Ok(None),
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
    expected: Expected<'_>,
    patience: Duration,
) -> Result<Opened, OpenError> {
    let client = Client::new(name).map_err(NegotiateError::from)?;
    let rest = start_tls(&mut stream, client, patience).await?;
    let upgrade = timeout(patience, connector.upgrade(RecordReader::new(stream))).await;
    let mut encrypted = upgrade.map_err(|_| NegotiateError::Deadline(patience))??;
    let export = rest.negotiate(&mut encrypted, patience).await?;
    let identity = identified(&mut encrypted, expected, &export, patience).await?;
    let (stream, cipher) = hand_over(encrypted).map_err(TlsError::from)?;
    tracing::debug!("encrypted by {}", cipher.name());
    let told = Told { export, epoch: None, identity };
    Ok(Opened { socket: stream.into_std()?.into(), ends: None, told, cipher: Some(cipher) })
}
