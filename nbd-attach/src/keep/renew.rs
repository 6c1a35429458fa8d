//! Making a connection again.

use super::{DRIVER_PATIENCE, Keeper, PATIENCE};
use crate::dial::hasten;
use crate::event::{Event, Reason};
use crate::netlink::client::{NetlinkError, Socket};
use crate::opener::{Ends, Expected, OpenError, Opened};
use crate::registry::{Connection, Request};
use crate::revive::is_adopted;
use crate::same::Told;
use crate::tls::kernel::Cipher;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two tries, at first; twice as long after each …
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … up to this.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Where the driver wants no connection although one has died, somebody else has given it one. Then it is asked less.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// The driver may take this long to see what we see: that a connection is dead.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(3);
const ADOPTION_PAUSE: Duration = Duration::from_millis(50);
/// A device that is detached loses its connections a moment before it goes.
const GOING_PATIENCE: Duration = Duration::from_millis(300);
const GOING_PAUSE: Duration = Duration::from_millis(20);

/// Why a connection was not made again this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{}", worded(.0))]
    Open(#[from] OpenError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the driver does not take a new connection: to it, no old one is dead")]
    NotAdopted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn worded(error: &OpenError) -> String {
    match error {
        OpenError::Different(difference) => format!("not reconnecting: {difference}"),
        other => other.to_string(),
    }
}

impl Failure {
    /// The same for scripts.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Failure::Open(error) => Reason::of(error),
            Failure::Netlink(_) | Failure::NotAdopted => Reason::Driver,
            Failure::Io(_) => Reason::Other,
        }
    }
}

/// A connection to the same export, which the driver does not have yet.
pub(super) struct Fresh {
    pub(super) socket: Socket,
    pub(super) ends: Option<Ends>,
    pub(super) cipher: Option<Cipher>,
    pub(super) told: Told,
}

impl Keeper<'_> {
    /// Tries until a connection is there again; none if the device has gone.
    pub(super) async fn renew(&self, place: usize) -> io::Result<Option<(usize, Fresh)>> {
        let begun = Instant::now();
        while begun.elapsed() < GOING_PATIENCE {
            if !self.is_ours() {
                return Ok(None);
            }
            sleep(GOING_PAUSE).await;
        }
        self.chronicle.connection(place, Connection::Dead, None);
        self.chronicle.tell(Event::Dead { connection: Some(place + 1) });
        self.slowness.died(place, self.config.timeout);
        let (mut pause, mut told) = (PAUSE_MIN, String::new());
        while self.is_ours() {
            if self.host.registry.is_asked(Request::LetGo, &self.backend) {
                sleep(PAUSE_MIN).await;
                continue;
            }
            match self.reconnect().await {
                Ok(fresh) => {
                    self.told_since(begun, place);
                    return Ok(Some((place, fresh)));
                }
                Err(failure) => {
                    self.tell_once(Some(place + 1), &failure, &mut told);
                    if matches!(failure, Failure::NotAdopted) {
                        self.chronicle.connection(place, Connection::Unknown, None);
                        pause = REFUSED_PAUSE;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(None)
    }

    async fn reconnect(&self) -> Result<Fresh, Failure> {
        let fresh = self.fresh().await?;
        // Without a time limit nobody could tell whether the connection is taken.
        self.limit_again().await?;
        let until = Instant::now() + ADOPTION_PATIENCE;
        while !self.offer(&fresh.socket).await? {
            if Instant::now() > until {
                return Err(Failure::NotAdopted);
            }
            sleep(ADOPTION_PAUSE).await;
        }
        Ok(fresh)
    }

    /// A new connection to what is still the same.
    pub(super) async fn fresh(&self) -> Result<Fresh, Failure> {
        let before = Told { identity: self.identity(), ..self.told.borrow().clone() };
        let opened = self.opener.open(Expected::Same(&before, self.size.get()), PATIENCE).await?;
        hasten(&opened.socket, self.config.timeout);
        let Opened { socket, ends, told, cipher } = opened;
        Ok(Fresh { socket: Socket::new(socket), ends, cipher, told })
    }

    /// Offers the driver a connection in the place of a dead one, and tells whether it took it. A driver that is busy
    /// with another device may answer late, but then it has the connection all the same: so it is waited for.
    pub(super) async fn offer(&self, socket: &Socket) -> Result<bool, Failure> {
        let netlink = &self.host.netlink;
        let mut answer =
            std::pin::pin!(netlink.reconnect(self.index, &self.backend, socket.clone(), Duration::MAX));
        let mut said = false;
        loop {
            tokio::select! {
                done = &mut answer => {
                    done?;
                    return Ok(is_adopted(socket)?);
                }
                () = sleep(DRIVER_PATIENCE) => {
                    if !self.is_ours() {
                        return Ok(false);
                    }
                    if !std::mem::replace(&mut said, true) {
                        let failure = Failure::from(NetlinkError::Deadline(DRIVER_PATIENCE));
                        self.tell_once(None, &failure, &mut String::new());
                    }
                }
            }
        }
    }

    /// Tells why it did not work, unless that is known.
    pub(super) fn tell_once(&self, connection: Option<usize>, failure: &Failure, told: &mut String) {
        let reason = failure.to_string();
        if reason != *told {
            told.clone_from(&reason);
            self.chronicle.tell(Event::Failed { connection, reason, code: failure.reason() });
        }
    }
}
