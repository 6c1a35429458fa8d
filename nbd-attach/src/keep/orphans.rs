//! Connections that an earlier keeper made: only the kernel has them, and it tells nobody which of them are dead.
//!
//! But it takes a new connection exactly if an old one is dead. So a new one is offered, and where it is taken it
//! stands for one of those, is watched like any other, and there is one orphan fewer.

use super::Keeper;
use super::renew::{Fresh, PAUSE_MAX, PAUSE_MIN};
use crate::event::Event;
use crate::netlink::events::Deaths;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::ops::Range;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Between two offers that nothing has called for. Events of the driver call for one; but they can be lost, and only
/// the first network namespace gets any.
const OFFER_EVERY: Duration = Duration::from_secs(10);

impl Keeper<'_> {
    /// Replaces the connections at these places as they die.
    pub(super) async fn adopt_orphans(&self, mut places: Range<usize>) -> io::Result<Infallible> {
        if places.is_empty() {
            return pending().await;
        }
        let mut deaths =
            Deaths::listen().await.inspect_err(|error| tracing::debug!("no events: {error}")).ok();
        let (mut told, mut pause) = (String::new(), PAUSE_MIN);
        while let Some(place) = places.clone().next() {
            // A dead connection that is known would lose its place to what is offered for an orphan.
            let known = self.config.connections - places.len();
            if self.is_to_let_go() || self.alive.borrow().len() < known {
                sleep(PAUSE_MIN).await;
                continue;
            }
            let begun = Instant::now();
            match self.offer_fresh().await {
                Ok(Some(fresh)) => {
                    places.next();
                    self.told_since(begun, place)?;
                    if let Err(failure) = self.accept(place, &fresh.export).await {
                        self.tell_once(Some(place + 1), &failure, &mut told)?;
                    }
                    self.adopt(place, fresh)?;
                    pause = PAUSE_MIN;
                }
                Ok(None) => {
                    told.clear();
                    pause = PAUSE_MIN;
                    self.until_called_for(&mut deaths).await?;
                }
                Err(failure) => {
                    self.tell_once(None, &failure, &mut told)?;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        pending().await
    }

    /// A new connection, if the driver took it.
    async fn offer_fresh(&self) -> Result<Option<Fresh>, super::renew::Failure> {
        let fresh = self.fresh().await?;
        Ok(self.offer(&fresh.socket).await?.then_some(fresh))
    }

    /// Waits for the driver to say that a connection of this device has died, or a while.
    async fn until_called_for(&self, deaths: &mut Option<Deaths>) -> io::Result<()> {
        let until = Instant::now() + OFFER_EVERY;
        while let Some(listening) = deaths {
            match timeout(until.saturating_duration_since(Instant::now()), listening.next()).await {
                Ok(Ok(Some(index))) if index != self.index => {}
                Ok(Ok(Some(_))) => return self.chronicle.tell(Event::Dead { connection: None }),
                Ok(Ok(None)) | Err(_) => return Ok(()),
                Ok(Err(error)) => {
                    tracing::debug!("no more events: {error}");
                    *deaths = None;
                }
            }
        }
        sleep(until.saturating_duration_since(Instant::now())).await;
        Ok(())
    }
}
