//! Connections that an earlier keeper made: only the kernel has them, and it tells nobody which of them are dead.
//!
//! But it takes a new connection exactly if an old one is dead. So a new one is offered, and where it is taken it
//! stands for one of those, is watched like any other, and there is one orphan fewer.

use super::Keeper;
use super::renew::{Fresh, PAUSE_MAX, PAUSE_MIN};
use crate::event::Event;
use crate::health::lives;
use crate::netlink::events::Deaths;
use crate::registry::Request;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Between two offers that nothing has called for. Events of the driver call for one; but they can be lost, and only
/// the first network namespace gets any.
const OFFER_EVERY: Duration = Duration::from_secs(10);

/// Between two offers that nothing has called for, and that cannot even be made: as of servers that serve one connection.
const VAIN_PAUSE_MAX: Duration = Duration::from_secs(300);

impl Keeper<'_> {
    /// Replaces the connections at these places as they die.
    pub(super) async fn adopt_orphans(&self, mut places: BTreeSet<usize>) -> io::Result<Infallible> {
        if places.is_empty() {
            return pending().await;
        }
        let mut deaths =
            Deaths::listen().await.inspect_err(|error| tracing::debug!("no events: {error}")).ok();
        let (mut told, mut pause, mut vain) = (String::new(), PAUSE_MIN, PAUSE_MAX);
        let mut heard = false;
        while !places.is_empty() {
            // A dead connection that is known would lose its place to what is offered for an orphan.
            let known = self.config.connections - places.len();
            let let_go = self.host.registry.is_asked(Request::LetGo, &self.backend);
            if let_go || self.alive.borrow().len() < known {
                sleep(PAUSE_MIN).await;
                continue;
            }
            let begun = Instant::now();
            match self.offer_fresh().await {
                Ok(Some(fresh)) => {
                    let Some(place) = self.left(&places) else { continue };
                    places.remove(&place);
                    self.told_since(begun, place);
                    self.adopt(place, fresh)?;
                    (pause, vain, heard) = (PAUSE_MIN, PAUSE_MAX, false);
                }
                Ok(None) => {
                    told.clear();
                    (pause, vain, heard) = (PAUSE_MIN, PAUSE_MAX, false);
                    heard |= self.until_called_for(&mut deaths, OFFER_EVERY).await;
                }
                // Nothing says that a connection is dead: that a server wants no more of them is no trouble.
                Err(failure) if !heard && self.inflight() == 0 => {
                    tracing::debug!("{}: nothing to offer: {failure}", self.index);
                    heard |= self.until_called_for(&mut deaths, vain).await;
                    vain = (vain * 2).min(VAIN_PAUSE_MAX);
                }
                Err(failure) => {
                    self.tell_once(None, &failure, &mut told);
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        pending().await
    }

    /// The place of an orphan that is seen to be dead, or of any.
    fn left(&self, places: &BTreeSet<usize>) -> Option<usize> {
        let orphans = self.chronicle.orphans();
        let dead = |place: &&usize| orphans.get(place).is_some_and(|ends| lives(*ends) == Some(false));
        places.iter().find(dead).or(places.first()).copied()
    }

    /// A new connection, if the driver took it.
    async fn offer_fresh(&self) -> Result<Option<Fresh>, super::renew::Failure> {
        let fresh = self.fresh().await?;
        Ok(self.offer(&fresh.socket).await?.then_some(fresh))
    }

    /// Waits for the driver to say that a connection of this device has died, or a while. Tells whether it did.
    async fn until_called_for(&self, deaths: &mut Option<Deaths>, a_while: Duration) -> bool {
        let until = Instant::now() + a_while;
        while let Some(listening) = deaths {
            match timeout(until.saturating_duration_since(Instant::now()), listening.next()).await {
                Ok(Ok(Some(index))) if index != self.index => {}
                Ok(Ok(Some(_))) => {
                    self.chronicle.tell(Event::Dead { connection: None });
                    return true;
                }
                Ok(Ok(None)) | Err(_) => return false,
                Ok(Err(error)) => {
                    tracing::debug!("no more events: {error}");
                    *deaths = None;
                }
            }
        }
        sleep(until.saturating_duration_since(Instant::now())).await;
        false
    }
}
