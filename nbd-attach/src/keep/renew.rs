//! Making a connection again.

use super::{DRIVER_PATIENCE, Keeper, PATIENCE, same};
use crate::dial::hasten;
use crate::event::Event;
use crate::netlink::client::{NetlinkError, Socket};
use crate::opener::{Ends, OpenError, Opened};
use crate::tls::kernel::Cipher;
use common::handshake::Export;
use nix::sys::socket::{getsockopt, sockopt};
use same::Difference;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two tries, at first; twice as long after each …
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … up to this.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The driver may take this long to see what we see: that a connection is dead.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(3);
const ADOPTION_PAUSE: Duration = Duration::from_millis(50);

/// Why a connection was not made again this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("not reconnecting: {0}")]
    Different(#[from] Difference),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the driver does not take a new connection: to it, no old one is dead")]
    NotAdopted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection to the same export, which the driver does not have yet.
pub(super) struct Fresh {
    pub(super) socket: Socket,
    pub(super) ends: Option<Ends>,
    pub(super) cipher: Option<Cipher>,
    pub(super) export: Export,
}

impl Keeper<'_> {
    /// Tries until a connection is there again; none if the device has gone.
    pub(super) async fn renew(&self, place: usize) -> io::Result<Option<(usize, Fresh)>> {
        let (begun, mut pause) = (Instant::now(), PAUSE_MIN);
        let mut told = String::new();
        while self.is_ours() {
            if self.is_to_let_go() {
                sleep(PAUSE_MIN).await;
                continue;
            }
            match self.reconnect(place).await {
                Ok(fresh) => {
                    self.told_since(begun, place)?;
                    return Ok(Some((place, fresh)));
                }
                Err(failure) => self.tell_once(Some(place + 1), &failure, &mut told)?,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(None)
    }

    async fn reconnect(&self, place: usize) -> Result<Fresh, Failure> {
        let fresh = self.fresh().await?;
        let until = Instant::now() + ADOPTION_PATIENCE;
        while !self.offer(&fresh.socket).await? {
            if Instant::now() > until {
                return Err(Failure::NotAdopted);
            }
            sleep(ADOPTION_PAUSE).await;
        }
        self.accept(place, &fresh.export).await?;
        Ok(fresh)
    }

    /// A new connection to what is still the same.
    pub(super) async fn fresh(&self) -> Result<Fresh, Failure> {
        let opened = self.opener.open(PATIENCE).await?;
        same::check(&self.export.borrow(), self.size.get(), &opened.export)?;
        hasten(&opened.socket, self.config.timeout);
        let Opened { socket, ends, export, cipher } = opened;
        Ok(Fresh { socket: Socket::new(socket), ends, cipher, export })
    }

    /// Offers the driver a connection in the place of a dead one. Where to the driver none is dead, it says
    /// yes and drops the connection; only its send timeout tells whether it was taken.
    pub(super) async fn offer(&self, socket: &Socket) -> Result<bool, Failure> {
        self.host.netlink.reconnect(self.index, &self.backend, socket.clone(), DRIVER_PATIENCE).await?;
        let timeout = getsockopt(&**socket, sockopt::SendTimeout).map_err(io::Error::from)?;
        Ok(timeout.tv_sec() > 0)
    }

    /// Tells why it did not work, unless that is known.
    pub(super) fn tell_once(
        &self,
        connection: Option<usize>,
        failure: &Failure,
        told: &mut String,
    ) -> io::Result<()> {
        let reason = failure.to_string();
        if reason != *told {
            told.clone_from(&reason);
            self.chronicle.tell(Event::Failed { connection, reason })?;
        }
        Ok(())
    }
}
