//! The bound on what all connections together may hold, given out in turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::lock;

/// How many bytes of payload all connections together may hold.
///
/// Those who wait are served in the order in which they began to, and nobody overtakes them:
/// as a connection waits with one request at a time, that is their turn one by one.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    held: usize,
    waiting: VecDeque<Waiter>,
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
        !lock(&self.state).waiting.is_empty()
    }
}

impl Place {
    /// Waits for the grant.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<Grant> {
        let mut state = lock(&self.budget.state);
        let first = state.waiting.front().is_none_or(|waiter| Some(waiter.ticket) == self.ticket);
        let fits = state.held + self.bytes <= self.budget.limit || state.held == 0;
        if self.bytes == 0 || (first && fits) {
            state.held += self.bytes;
            drop(state);
            self.leave();
            return Poll::Ready(Grant { budget: self.budget.clone(), bytes: self.bytes });
        }
        let known = state.waiting.iter_mut().find(|waiter| Some(waiter.ticket) == self.ticket);
        if let Some(waiter) = known {
            waiter.waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(Waiter { ticket, bytes: self.bytes, waker: cx.waker().clone() });
        drop(state);
        self.ticket = Some(ticket);
        Poll::Pending
    }

    fn leave(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            lock(&self.budget.state).waiting.retain(|waiter| waiter.ticket != ticket);
            self.budget.wake_first();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Budget {
    /// Lets the first in line look again, if there is now room for it.
    fn wake_first(&self) {
        let state = lock(&self.state);
        let fits = |waiter: &&Waiter| state.held + waiter.bytes <= self.limit || state.held == 0;
        let waker = state.waiting.front().filter(fits).map(|waiter| waiter.waker.clone());
        drop(state);
        waker.into_iter().for_each(Waker::wake);
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
        lock(&self.budget.state).held -= self.bytes;
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
