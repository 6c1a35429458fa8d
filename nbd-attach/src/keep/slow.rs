//! Requests that take longer than the driver waits: it cuts the connection and sends them again from their start, for ever,
//! because their server answers everybody else at once.
//!
//! A request keeps the time limit that it began with, so a larger one does not help it. Where the device has one
//! connection, the driver cuts nothing while it is told of no limit. Where it has several, it cuts one after the other, as
//! the request goes to another each time; only later requests are helped.

use super::renew::Failure;
use super::{DRIVER_PATIENCE, Keeper};
use crate::config::TIMEOUT_MAX;
use crate::event::Event;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Deaths in a row, each as late after a new connection as a request is cut, that are no chance.
const STRIKES: u32 = 3;
/// Connections that die together die of their server.
const TOGETHER: Duration = Duration::from_secs(1);
/// A request may be a little older than the connection.
const EARLY: Duration = Duration::from_secs(1);
/// Deaths that are remembered: two slow requests may take turns.
const DEATHS_MAX: usize = 2;
/// How long the driver may take to send again what a new connection is for.
const RESENDING: Duration = Duration::from_secs(3);
/// What the driver may be late by: it looks once a second.
const LATE: Duration = Duration::from_millis(2500);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Slowness {
    /// When each place got its connection.
    since: RefCell<BTreeMap<usize, Instant>>,
    /// Deaths in a row that look like that: with the limit that is in force now, and with the first one.
    strikes: Cell<Strikes>,
    /// The last deaths.
    deaths: RefCell<VecDeque<(usize, Instant)>>,
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
        let now = Instant::now();
        let lived = self.since.borrow_mut().remove(&place).map(|since| now - since);
        let mut deaths = self.deaths.borrow_mut();
        let together = deaths.iter().any(|(other, then)| *other != place && now - *then < TOGETHER);
        // It was sent to this connection when it began, or when another one was cut.
        let waits: Vec<Duration> = deaths.iter().map(|(_, then)| now - *then).chain(lived).collect();
        deaths.push_back((place, now));
        if deaths.len() > DEATHS_MAX {
            deaths.pop_front();
        }
        let limit = self.timeout.get().unwrap_or(first_limit);
        let cut_after = |limit| waits.iter().any(|wait| is_cut(*wait, limit));
        let Strikes { now: before, first } = self.strikes.get();
        // An old request still has the first limit, which may explain this.
        self.strikes.set(match (together, self.busy.get()) {
            (false, true) if cut_after(first_limit) => {
                Strikes { now: if limit == first_limit { before + 1 } else { before }, first: first + 1 }
            }
            (false, true) if cut_after(limit) => Strikes { now: before + 1, first },
            _ => Strikes::default(),
        });
    }

    /// Whether some request was cut so often. The count begins anew then.
    fn struck(&self) -> Option<Struck> {
        let Strikes { now, first } = self.strikes.get();
        let struck = match () {
            () if now >= STRIKES => Struck::Limit,
            () if first >= STRIKES => Struck::FirstLimit,
            () => return None,
        };
        self.strikes.take();
        Some(struck)
    }
}

/// Deaths in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Strikes {
    now: u32,
    first: u32,
}

/// What a request was cut by again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Struck {
    /// By the limit in force.
    Limit,
    /// By the one that it began with: it is an old one, and no larger limit helps it.
    FirstLimit,
}

/// Whether a connection that a request was sent to so long ago died as one does whose oldest request is cut after that
/// limit.
fn is_cut(wait: Duration, limit: Duration) -> bool {
    (limit..limit + limit / 2 + LATE).contains(&(wait + EARLY))
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
        if self.alive.borrow().is_empty() {
            return Ok(());
        }
        let only_one = self.config.connections == 1;
        match self.slowness.struck() {
            None => return Ok(()),
            // One connection can be spared the cut, whatever the request began with.
            Some(Struck::FirstLimit) if !only_one => return Ok(()),
            Some(_) => {}
        }
        let raised = (limit * 2).min(TIMEOUT_MAX);
        self.slowness.timeout.set(Some(raised));
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
    use tokio::time::sleep;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A connection that a request was cut on.
    async fn cut(slowness: &Slowness, place: usize) {
        slowness.adopted(place);
        sleep(LIMIT).await;
        slowness.died(place, LIMIT);
    }

    #[test]
    fn a_cut_comes_when_the_time_of_a_request_is_up() {
        let seconds = Duration::from_secs;
        assert!(is_cut(seconds(10), seconds(10)) && is_cut(seconds(15), seconds(10)));
        assert!(!is_cut(seconds(3), seconds(10)) && !is_cut(seconds(20), seconds(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_cut_again_and_again_counts() {
        let slowness = Slowness::default();
        slowness.busy.set(true);
        slowness.died(0, LIMIT);
        assert_eq!(slowness.struck(), None, "nobody knows how long it lived");
        for _ in 0..STRIKES - 1 {
            cut(&slowness, 0).await;
        }
        assert_eq!(slowness.struck(), None);
        cut(&slowness, 0).await;
        assert_eq!([slowness.struck(), slowness.struck()], [Some(Struck::Limit), None]);
        for _ in 0..STRIKES - 1 {
            cut(&slowness, 0).await;
        }
        slowness.busy.set(false);
        cut(&slowness, 0).await;
        slowness.busy.set(true);
        cut(&slowness, 0).await;
        assert_eq!(slowness.struck(), None, "once nothing was in flight");
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_may_cut_many_connections_in_turn() {
        let slowness = Slowness::default();
        slowness.busy.set(true);
        (0..4).for_each(|place| slowness.adopted(place));
        sleep(100 * LIMIT).await;
        for place in 0..=STRIKES as usize {
            slowness.died(place, LIMIT);
            sleep(LIMIT / 20).await;
            slowness.adopted(place);
            sleep(LIMIT).await;
        }
        assert_eq!(slowness.struck(), Some(Struck::Limit), "each lived much longer than the limit");
        // The limit is raised; that request is still cut by its own.
        slowness.timeout.set(Some(4 * LIMIT));
        for place in 0..STRIKES as usize {
            slowness.died(place, LIMIT);
            sleep(LIMIT).await;
        }
        assert_eq!(slowness.struck(), Some(Struck::FirstLimit));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_die_together_died_of_their_server() {
        let slowness = Slowness::default();
        slowness.busy.set(true);
        for _ in 0..2 * STRIKES {
            (0..2).for_each(|place| slowness.adopted(place));
            sleep(LIMIT).await;
            (0..2).for_each(|place| slowness.died(place, LIMIT));
        }
        assert_eq!(slowness.struck(), None);
    }
}
