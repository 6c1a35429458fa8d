//! Requests that take longer than the driver waits: it cuts the connection and sends them again from their start, for ever,
//! because their server answers everybody else at once.
//!
//! A request keeps the time limit that it began with, so a larger one does not help it. Where the device has one
//! connection, the driver cuts nothing while it is told of no limit; where it has several, only later requests are helped.

use super::renew::Failure;
use super::{DRIVER_PATIENCE, Keeper};
use crate::config::TIMEOUT_MAX;
use crate::event::Event;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Deaths in a row, each as late after a new connection as a request is cut, that are no chance.
const STRIKES: u32 = 2;
/// A request may be a little older than the connection.
const EARLY: Duration = Duration::from_secs(1);
/// How long the driver may take to send again what a new connection is for.
const RESENDING: Duration = Duration::from_secs(3);
/// What the driver may be late by.
const LATE: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Slowness {
    /// When each place got its connection.
    since: RefCell<BTreeMap<usize, Instant>>,
    strikes: Cell<u32>,
    /// Whether anything was in flight when it was last looked at: what waits for a new connection is not.
    busy: Cell<bool>,
    /// The limit, once it was raised.
    timeout: Cell<Option<Duration>>,
    /// Since when there is none.
    lenient: Cell<Option<Instant>>,
}

impl Slowness {
    /// A place has a connection.
    pub(super) fn adopted(&self, place: usize) {
        self.since.borrow_mut().insert(place, Instant::now());
    }

    /// It has none any more; the first request in flight, if there was one, had that limit.
    pub(super) fn died(&self, place: usize, first_limit: Duration) {
        let lived = self.since.borrow_mut().remove(&place).map(|since| since.elapsed());
        let limit = self.timeout.get().unwrap_or(first_limit);
        let again = self.busy.get() && lived.is_some_and(|lived| is_cut(lived, first_limit, limit));
        self.strikes.set(if again { self.strikes.get() + 1 } else { 0 });
    }
}

/// Whether a connection that lived so long died as one does whose oldest request is cut.
fn is_cut(lived: Duration, first_limit: Duration, limit: Duration) -> bool {
    (first_limit..limit * 2 + LATE).contains(&(lived + EARLY))
}

impl Keeper<'_> {
    /// Looks whether the same request is being cut again and again, or has been answered at last.
    pub(super) async fn mind_slow_requests(&self) -> Result<(), Failure> {
        let limit = self.slowness.timeout.get().unwrap_or(self.config.timeout);
        let busy = self.inflight() > 0;
        self.slowness.busy.set(busy);
        if let Some(since) = self.slowness.lenient.get() {
            let answered = !busy && since.elapsed() > RESENDING;
            if answered || since.elapsed() > limit {
                self.limit_again().await?;
            }
            return Ok(());
        }
        if self.slowness.strikes.get() < STRIKES || self.alive.borrow().len() < self.config.connections {
            return Ok(());
        }
        self.slowness.strikes.set(0);
        let raised = (limit * 2).min(TIMEOUT_MAX);
        self.slowness.timeout.set(Some(raised));
        let only_one = self.config.connections == 1;
        self.limit(if only_one { Duration::ZERO } else { raised }).await?;
        self.slowness.lenient.set(only_one.then(Instant::now));
        self.chronicle.timeout(raised);
        self.chronicle.tell(Event::Slow { seconds: limit.as_secs(), raised: raised.as_secs() });
        Ok(())
    }

    /// Has the driver cut again what takes too long.
    pub(super) async fn limit_again(&self) -> Result<(), Failure> {
        if self.slowness.lenient.take().is_some() {
            self.limit(self.slowness.timeout.get().unwrap_or(self.config.timeout)).await?;
        }
        Ok(())
    }

    async fn limit(&self, timeout: Duration) -> Result<(), Failure> {
        let waits = [timeout, self.config.dead_connection_timeout];
        Ok(self.host.netlink.wait_for(self.index, Some(&self.backend), waits, DRIVER_PATIENCE).await?)
    }

    /// Requests in flight.
    pub(super) fn inflight(&self) -> u64 {
        self.host.sysfs.device(self.index).inflight().map_or(0, |counts| counts.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_cut_again_and_again_counts() {
        let seconds = Duration::from_secs;
        let (first, raised) = (seconds(10), seconds(40));
        assert!(is_cut(seconds(10), first, first) && is_cut(seconds(50), first, raised));
        assert!(!is_cut(seconds(3), first, first) && !is_cut(seconds(60), first, first));

        let slowness = Slowness::default();
        let instant = Duration::ZERO;
        slowness.busy.set(true);
        slowness.died(0, instant);
        assert_eq!(slowness.strikes.get(), 0, "nobody knows how long it lived");
        for strikes in 1..=2 {
            slowness.adopted(0);
            slowness.died(0, instant);
            assert_eq!(slowness.strikes.get(), strikes);
        }
        slowness.adopted(0);
        slowness.busy.set(false);
        slowness.died(0, instant);
        assert_eq!(slowness.strikes.get(), 0, "nothing was in flight");
    }
}
