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
const STRIKES: u32 = 3;
/// Connections that die together die of their server.
const TOGETHER: Duration = Duration::from_secs(1);
/// A request may be a little older than the connection.
const EARLY: Duration = Duration::from_secs(1);
/// How long the driver may take to send again what a new connection is for.
const RESENDING: Duration = Duration::from_secs(3);
/// What the driver may be late by: it looks once a second.
const LATE: Duration = Duration::from_millis(2500);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Slowness {
    /// When each place got its connection.
    since: RefCell<BTreeMap<usize, Instant>>,
    strikes: RefCell<BTreeMap<usize, u32>>,
    /// The last death.
    death: Cell<Option<(usize, Instant)>>,
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
        let cut = |lived| is_cut(lived, first_limit) || is_cut(lived, limit);
        let again = self.busy.get() && lived.is_some_and(cut);
        let before = self.death.replace(Some((place, Instant::now())));
        let together = before.is_some_and(|(other, then)| other != place && then.elapsed() < TOGETHER);
        let mut strikes = self.strikes.borrow_mut();
        if together {
            strikes.clear();
        } else {
            let count = if again { strikes.get(&place).copied().unwrap_or(0) + 1 } else { 0 };
            strikes.insert(place, count);
        }
    }

    /// Whether some connection has died so often like that. It begins to count anew then.
    fn struck(&self) -> bool {
        let mut strikes = self.strikes.borrow_mut();
        let struck = strikes.values().any(|count| *count >= STRIKES);
        if struck {
            strikes.clear();
        }
        struck
    }
}

/// Whether a connection that lived so long died as one does whose oldest request is cut after that limit.
fn is_cut(lived: Duration, limit: Duration) -> bool {
    (limit..limit + limit / 2 + LATE).contains(&(lived + EARLY))
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
        if self.alive.borrow().len() < self.config.connections || !self.slowness.struck() {
            return Ok(());
        }
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

    /// A connection that a request was cut on at once.
    fn cut(slowness: &Slowness, place: usize) {
        slowness.adopted(place);
        slowness.died(place, Duration::ZERO);
    }

    #[test]
    fn a_cut_comes_when_the_time_of_a_request_is_up() {
        let seconds = Duration::from_secs;
        assert!(is_cut(seconds(10), seconds(10)) && is_cut(seconds(15), seconds(10)));
        assert!(!is_cut(seconds(3), seconds(10)) && !is_cut(seconds(20), seconds(10)));
    }

    #[test]
    fn only_what_is_cut_again_and_again_counts() {
        let slowness = Slowness::default();
        slowness.busy.set(true);
        slowness.died(0, Duration::ZERO);
        assert!(!slowness.struck(), "nobody knows how long it lived");
        (0..STRIKES - 1).for_each(|_| cut(&slowness, 0));
        assert!(!slowness.struck());
        cut(&slowness, 0);
        assert!(slowness.struck() && !slowness.struck());
        (0..STRIKES - 1).for_each(|_| cut(&slowness, 0));
        slowness.busy.set(false);
        cut(&slowness, 0);
        slowness.busy.set(true);
        cut(&slowness, 0);
        assert!(!slowness.struck(), "once nothing was in flight");
    }

    #[test]
    fn connections_that_die_together_died_of_their_server() {
        let slowness = Slowness::default();
        slowness.busy.set(true);
        for _ in 0..2 * STRIKES {
            cut(&slowness, 0);
            cut(&slowness, 1);
        }
        assert!(!slowness.struck());
    }
}
