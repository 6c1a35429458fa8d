//! The bound on what all connections together may hold, given out in turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::lock;

/// Longest request that may use the reserve, in bytes.
const SHORT_MAX: usize = 64 << 10;
/// The reserve, as a part of the whole: long requests leave it to short ones.
const RESERVE: usize = 8;

/// How many bytes of payload all connections together may hold.
///
/// Those who wait are served in the order in which they began to: as a connection waits with one request at
/// a time, that is their turn one by one. Short requests have a line of their own and a reserve, so that long
/// ones, which clients or disks may hold for long, never stop them.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    held: usize,
    /// What of that short requests hold.
    held_by_short: usize,
    short: VecDeque<Waiter>,
    long: VecDeque<Waiter>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    bytes: usize,
    waker: Waker,
}

/// A place in the line for memory; leaving it is dropping it.
#[derive(Debug)]
pub struct Place {
    budget: Arc<Budget>,
    ticket: Option<u64>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, state: Mutex::default() })
    }

    /// Asks for `bytes`. A request that is larger than the whole budget is granted once nothing
    /// else is held; one for nothing is granted at once.
    #[must_use]
    pub fn ask(self: &Arc<Budget>, bytes: usize) -> Place {
        Place { budget: self.clone(), ticket: None, bytes }
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        lock(&self.state).held
    }

    /// Whether some connection waits for memory.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        let state = lock(&self.state);
        !state.short.is_empty() || !state.long.is_empty()
    }

    /// Lets the first of each line look again, if there is now room for it.
    fn wake_first(&self) {
        let state = lock(&self.state);
        let first = |line: &VecDeque<Waiter>| {
            let waiter = line.front()?;
            state.fits(waiter.bytes, self.limit).then(|| waiter.waker.clone())
        };
        let wakers = [first(&state.short), first(&state.long)];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Shares {
    fn line(&mut self, bytes: usize) -> &mut VecDeque<Waiter> {
        if bytes <= SHORT_MAX { &mut self.short } else { &mut self.long }
    }

    fn fits(&self, bytes: usize, limit: usize) -> bool {
        let reserve = limit / RESERVE;
        if self.held == 0 {
            return true;
        }
        if bytes > SHORT_MAX {
            return self.held + bytes <= limit - reserve;
        }
        // While a long request waits, short ones have the reserve and leave it the rest.
        self.held + bytes <= limit && (self.long.is_empty() || self.held_by_short + bytes <= reserve)
    }
}

impl Place {
    /// Waits for the grant.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<Grant> {
        let mut state = lock(&self.budget.state);
        let first = state.line(self.bytes).front().is_none_or(|waiter| Some(waiter.ticket) == self.ticket);
        if self.bytes == 0 || (first && state.fits(self.bytes, self.budget.limit)) {
            state.held += self.bytes;
            if self.bytes <= SHORT_MAX {
                state.held_by_short += self.bytes;
            }
            drop(state);
            self.leave();
            return Poll::Ready(Grant { budget: self.budget.clone(), bytes: self.bytes });
        }
        let known = state.line(self.bytes).iter_mut().find(|waiter| Some(waiter.ticket) == self.ticket);
        if let Some(waiter) = known {
            waiter.waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.line(self.bytes).push_back(Waiter { ticket, bytes: self.bytes, waker: cx.waker().clone() });
        drop(state);
        self.ticket = Some(ticket);
        Poll::Pending
    }

    fn leave(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            lock(&self.budget.state).line(self.bytes).retain(|waiter| waiter.ticket != ticket);
            self.budget.wake_first();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The right to hold some bytes; given back when dropped.
#[derive(Debug)]
pub struct Grant {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Grant {
    /// Bytes granted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = lock(&self.budget.state);
        state.held -= self.bytes;
        if self.bytes <= SHORT_MAX {
            state.held_by_short -= self.bytes;
        }
        drop(state);
        self.budget.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_given_out_in_turn() {
        let budget = Budget::new(100);
        let cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = budget.ask(80).poll(&cx) else { panic!("there was room") };
        let (mut large, mut small) = (budget.ask(90), budget.ask(10));
        assert!(large.poll(&cx).is_pending() && budget.is_contended());
        assert!(small.poll(&cx).is_pending(), "what would fit must not overtake");
        assert!(budget.ask(0).poll(&cx).is_ready(), "nothing is always to be had");
        drop(first);
        assert!(small.poll(&cx).is_pending(), "it is not its turn");
        let Poll::Ready(second) = large.poll(&cx) else { panic!("it is its turn") };
        let Poll::Ready(third) = small.poll(&cx) else { panic!("it is its turn") };
        assert_eq!((budget.held(), budget.is_contended()), (100, false));
        drop((second, third));
        let Poll::Ready(huge) = budget.ask(1000).poll(&cx) else { panic!("nothing else is held") };
        assert_eq!((huge.bytes(), budget.held()), (1000, 1000));
    }

    #[test]
    fn short_requests_do_not_wait_for_long_ones() {
        let budget = Budget::new(64 << 20);
        let cx = Context::from_waker(Waker::noop());
        let long: Vec<Grant> = std::iter::from_fn(|| match budget.ask(8 << 20).poll(&cx) {
            Poll::Ready(grant) => Some(grant),
            Poll::Pending => None,
        })
        .collect();
        assert_eq!(long.len(), 7, "they leave the reserve");
        let mut waiting = budget.ask(8 << 20);
        assert!(waiting.poll(&cx).is_pending());
        let short: Vec<Grant> = std::iter::from_fn(|| match budget.ask(4096).poll(&cx) {
            Poll::Ready(grant) => Some(grant),
            Poll::Pending => None,
        })
        .collect();
        assert_eq!(short.len(), 2048, "the reserve is theirs");
        drop(long);
        assert!(budget.ask(4096).poll(&cx).is_pending(), "a long one waits, which must not starve");
        assert!(waiting.poll(&cx).is_ready());
        assert!(budget.ask(4096).poll(&cx).is_ready());
    }

    #[test]
    fn who_leaves_the_line_does_not_block_it() {
        let budget = Budget::new(100);
        let cx = Context::from_waker(Waker::noop());
        let Poll::Ready(_first) = budget.ask(80).poll(&cx) else { panic!("there was room") };
        let (mut large, mut small) = (budget.ask(90), budget.ask(10));
        assert!(large.poll(&cx).is_pending() && small.poll(&cx).is_pending());
        drop(large);
        assert!(small.poll(&cx).is_ready());
    }
}
