//! The bound on what all connections together may hold, and on what of that one export or client may.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use super::lock;

/// Longest request that may use the reserve, in bytes.
const SHORT_MAX: usize = 64 << 10;
/// The reserve, as a part of the whole: long requests leave it to short ones.
const RESERVE: usize = 8;

/// How many bytes of payload all connections together may hold.
///
/// Clients and disks may hold memory for as long as they like, so that nobody may hold all of it:
///
/// - Short requests have a reserve that long ones leave to them.
/// - An export that holds something takes more only if it leaves as much as it then holds: a disk that hangs keeps half
///   of the memory, a second one half of the rest.
/// - Likewise a client among others of its export.
///
/// Who waits is served in the order in which it began to, but for those who hold something: they wait for those who hold
/// nothing, so that a long request is not starved by many shorter ones. Memory that is given back is given to who waits
/// at once, whether or not its thread has time to take it.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    held: usize,
    /// What of that short requests hold.
    held_byshort: usize,
    waiting: VecDeque<Waiter>,
    /// Tickets of those who have been granted what they waited for and do not know yet.
    granted: HashSet<u64>,
    next_ticket: u64,
    /// By a number that its owner chose.
    exports: HashMap<usize, Weak<Holding>>,
}

/// What an export or a client holds. Changed under the lock of the budget only.
#[derive(Debug, Default)]
struct Holding {
    bytes: AtomicUsize,
    /// What of that short requests hold.
    short: AtomicUsize,
}

/// A connection, which is charged for what it holds, and its export with it.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    export: Arc<Holding>,
    client: Holding,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    bytes: usize,
    account: Arc<Account>,
    waker: Waker,
}

/// A place in the line for memory; leaving it is dropping it.
#[derive(Debug)]
pub struct Place {
    account: Arc<Account>,
    ticket: Option<u64>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, state: Mutex::default() })
    }

    /// An account for a connection to the export of that number.
    #[must_use]
    pub fn account(self: &Arc<Budget>, export: usize) -> Arc<Account> {
        let mut state = lock(&self.state);
        state.exports.retain(|_, holding| holding.strong_count() > 0);
        let known = state.exports.get(&export).and_then(Weak::upgrade);
        let export = known.unwrap_or_else(|| {
            let new = Arc::default();
            state.exports.insert(export, Arc::downgrade(&new));
            new
        });
        Arc::new(Account { budget: self.clone(), export, client: Holding::default() })
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        lock(&self.state).held
    }
}

impl Account {
    /// Asks for `bytes`. A long request is granted at once where no long one holds anything, one for nothing always.
    #[must_use]
    pub fn ask(self: &Arc<Account>, bytes: usize) -> Place {
        Place { account: self.clone(), ticket: None, bytes }
    }

    /// Whether somebody waits for memory who may have it once this connection gives some back.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        let state = lock(&self.budget.state);
        let limit = self.budget.limit;
        state.waiting.iter().any(|waiter| {
            Arc::ptr_eq(&waiter.account.export, &self.export) || state.is_in_share(waiter, limit)
        })
    }

    /// Charges for a grant.
    fn take(&self, state: &mut Shares, bytes: usize) {
        state.held += bytes;
        self.export.bytes.fetch_add(bytes, Relaxed);
        self.client.bytes.fetch_add(bytes, Relaxed);
        if bytes <= SHORT_MAX {
            state.held_byshort += bytes;
            self.export.short.fetch_add(bytes, Relaxed);
        }
    }

    /// Takes a grant back, and gives what is free to those who wait.
    fn give_back(&self, bytes: usize) {
        let mut state = lock(&self.budget.state);
        state.held -= bytes;
        self.export.bytes.fetch_sub(bytes, Relaxed);
        self.client.bytes.fetch_sub(bytes, Relaxed);
        if bytes <= SHORT_MAX {
            state.held_byshort -= bytes;
            self.export.short.fetch_sub(bytes, Relaxed);
        }
        let woken = state.serve(self.budget.limit);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Who must be let go first.
#[derive(Default)]
struct Ahead {
    /// A long request waits that is within the share of its export.
    long: bool,
    /// The same, of a client that holds nothing.
    fresh: bool,
    /// Exports of which such a client waits, within their share or not.
    exports: HashSet<*const Holding>,
}

impl Shares {
    /// Whether it may have so much now.
    fn fits(&self, bytes: usize, account: &Account, ahead: &Ahead, limit: usize) -> bool {
        if bytes <= SHORT_MAX {
            return self.short_fits(bytes, account, ahead, limit);
        }
        let must_wait = !account.holds_nothing()
            && (ahead.fresh || ahead.exports.contains(&Arc::as_ptr(&account.export)));
        let (Some(rest), false) = (self.rest_for_long(limit).checked_sub(bytes), must_wait) else {
            // One that is longer than there can be room for has its turn when no other is there.
            return self.held == self.held_byshort;
        };
        let export = account.export.bytes.load(Relaxed);
        export == 0 || (export + bytes <= rest && account.leaves_to_others(bytes, rest))
    }

    fn short_fits(&self, bytes: usize, account: &Account, ahead: &Ahead, limit: usize) -> bool {
        let (export, short) = (account.export.bytes.load(Relaxed), account.export.short.load(Relaxed));
        let leaves = |held: usize, all: usize, own: usize| {
            all.checked_sub(held + bytes).is_some_and(|rest| own == 0 || own + bytes <= rest)
        };
        // While long ones wait, short ones have the reserve and leave them the rest.
        self.held == 0
            || leaves(self.held, limit, export)
                && (!ahead.long || leaves(self.held_byshort, limit / RESERVE, short))
    }

    /// What long requests may still take.
    fn rest_for_long(&self, limit: usize) -> usize {
        (limit - limit / RESERVE).saturating_sub(self.held)
    }

    /// Whether it waits for others, and not for the clients of its own export.
    fn is_in_share(&self, waiter: &Waiter, limit: usize) -> bool {
        let wanted = waiter.account.export.bytes.load(Relaxed) + waiter.bytes;
        wanted == waiter.bytes
            || wanted <= limit / RESERVE
            || self.rest_for_long(limit).checked_sub(waiter.bytes).is_some_and(|rest| wanted <= rest)
    }

    fn ahead(&self, limit: usize) -> Ahead {
        let mut ahead = Ahead::default();
        for waiter in self.waiting.iter().filter(|waiter| waiter.bytes > SHORT_MAX) {
            let is_in_share = self.is_in_share(waiter, limit);
            ahead.long |= is_in_share;
            if waiter.account.holds_nothing() {
                ahead.fresh |= is_in_share;
                ahead.exports.insert(Arc::as_ptr(&waiter.account.export));
            }
        }
        ahead
    }

    /// Grants what is free to those who wait; returns whom to wake.
    fn serve(&mut self, limit: usize) -> Vec<Waker> {
        let mut woken = Vec::new();
        if self.waiting.is_empty() {
            return woken;
        }
        self.grant(&Ahead::default(), limit, &mut woken, Account::holds_nothing);
        let ahead = self.ahead(limit);
        self.grant(&ahead, limit, &mut woken, |_| true);
        woken
    }

    fn grant(
        &mut self,
        ahead: &Ahead,
        limit: usize,
        woken: &mut Vec<Waker>,
        whose: impl Fn(&Account) -> bool,
    ) {
        for waiter in std::mem::take(&mut self.waiting) {
            let account = &waiter.account;
            if whose(account) && self.fits(waiter.bytes, account, ahead, limit) {
                account.take(self, waiter.bytes);
                self.granted.insert(waiter.ticket);
                woken.push(waiter.waker);
            } else {
                self.waiting.push_back(waiter);
            }
        }
    }
}

impl Account {
    fn holds_nothing(&self) -> bool {
        self.client.bytes.load(Relaxed) == 0
    }

    /// Whether a client that takes so much leaves as much as it then holds to others of its export, where `rest` is left
    /// to all.
    fn leaves_to_others(&self, bytes: usize, rest: usize) -> bool {
        let export = self.export.bytes.load(Relaxed) + bytes;
        self.client.bytes.load(Relaxed) + bytes <= rest.saturating_sub(export) / 2
    }
}

impl Place {
    /// Waits for the grant.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<Grant> {
        let budget = &self.account.budget;
        let mut state = lock(&budget.state);
        let is_granted = match self.ticket {
            Some(ticket) => state.granted.remove(&ticket),
            None => {
                let fits = self.bytes == 0 || {
                    let ahead = state.ahead(budget.limit);
                    state.fits(self.bytes, &self.account, &ahead, budget.limit)
                };
                if fits {
                    self.account.take(&mut state, self.bytes);
                }
                fits
            }
        };
        if is_granted {
            drop(state);
            self.ticket = None;
            return Poll::Ready(Grant { account: self.account.clone(), bytes: self.bytes });
        }
        let known = state.waiting.iter_mut().find(|waiter| Some(waiter.ticket) == self.ticket);
        if let Some(waiter) = known {
            waiter.waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let (account, waker) = (self.account.clone(), cx.waker().clone());
        state.waiting.push_back(Waiter { ticket, bytes: self.bytes, account, waker });
        drop(state);
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let budget = &self.account.budget;
        let mut state = lock(&budget.state);
        if state.granted.remove(&ticket) {
            drop(state);
            return self.account.give_back(self.bytes);
        }
        state.waiting.retain(|waiter| waiter.ticket != ticket);
        // Others may have waited for it.
        let woken = state.serve(budget.limit);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// The right to hold some bytes; given back when dropped.
#[derive(Debug)]
pub struct Grant {
    account: Arc<Account>,
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
        self.account.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn ask(account: &Arc<Account>, bytes: usize) -> Result<Grant, Place> {
        let mut place = account.ask(bytes);
        match place.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(grant) => Ok(grant),
            Poll::Pending => Err(place),
        }
    }

    fn is_granted(place: &mut Place) -> Option<Grant> {
        match place.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(grant) => Some(grant),
            Poll::Pending => None,
        }
    }

    /// As much as it gets.
    fn hoard(account: &Arc<Account>, bytes: usize) -> Vec<Grant> {
        std::iter::from_fn(|| ask(account, bytes).ok()).collect()
    }

    #[test]
    fn the_budget_bounds_what_all_hold_and_gives_back_what_is_dropped() {
        let budget = Budget::new(64 * MIB);
        let exports: Vec<_> = (0..40).map(|number| budget.account(number)).collect();
        let held: Vec<Grant> = exports.iter().flat_map(|account| hoard(account, 4 * MIB)).collect();
        assert_eq!(held.len(), 14, "all but the reserve");
        let short: Vec<Grant> = exports.iter().flat_map(|account| hoard(account, 4096)).collect();
        assert!(budget.held() <= 64 * MIB && short.len() > 1000, "{}", short.len());
        assert!(ask(&exports[0], 0).is_ok(), "nothing is always to be had");
        drop((held, short));
        assert_eq!(budget.held(), 0);
        assert_eq!(
            ask(&exports[0], 100 * MIB).map(|huge| huge.bytes()).ok(),
            Some(100 * MIB),
            "nothing else is held"
        );
    }

    #[test]
    fn exports_that_keep_what_they_get_leave_something_to_the_others() {
        for bytes in [SHORT_MAX, MIB] {
            let budget = Budget::new(512 * MIB);
            let mut kept = Vec::new();
            for number in 0..6 {
                let clients: Vec<_> = (0..20).map(|_| budget.account(number)).collect();
                kept.extend(clients.iter().map(|client| hoard(client, bytes)));
            }
            let late = budget.account(7);
            assert!(ask(&late, MIB).is_ok(), "after six with requests of {bytes} bytes");
            assert!(ask(&late, 4096).is_ok());
        }
    }

    #[test]
    fn clients_that_keep_what_they_get_leave_something_to_others_of_their_export() {
        let budget = Budget::new(512 * MIB);
        let kept: Vec<_> = (0..16).map(|_| hoard(&budget.account(0), 32 * MIB)).collect();
        assert!(kept.iter().flatten().count() >= 4);
        let (one, other) = (budget.account(0), budget.account(0));
        let (first, second) = (ask(&one, MIB), ask(&other, 4 * MIB));
        assert!(first.is_ok() && second.is_ok());
    }

    #[test]
    fn many_shorter_requests_do_not_starve_a_longer_one() {
        let budget = Budget::new(512 * MIB);
        let clients: Vec<_> = (0..4).map(|_| budget.account(0)).collect();
        let mut busy: VecDeque<(usize, Grant)> = VecDeque::new();
        for (number, client) in clients.iter().enumerate() {
            busy.extend(hoard(client, MIB).into_iter().map(|grant| (number, grant)));
        }
        let before = busy.len();
        let late = budget.account(0);
        let mut long = ask(&late, 32 * MIB).expect_err("there is no room for it");
        // Each asks for more as soon as it is given back some.
        let mut waiting: Vec<Option<Place>> = clients.iter().map(|_| None).collect();
        for _ in 0..2 * before {
            if is_granted(&mut long).is_some() {
                return;
            }
            let (number, grant) = busy.pop_front().expect("it is not all gone");
            drop(grant);
            let mut place = waiting[number].take().unwrap_or_else(|| clients[number].ask(MIB));
            match is_granted(&mut place) {
                Some(grant) => busy.push_back((number, grant)),
                None => waiting[number] = Some(place),
            }
        }
        panic!("it starves");
    }

    #[test]
    fn what_is_given_back_goes_to_who_waits_though_it_does_not_look() {
        let budget = Budget::new(512 * MIB);
        let (one, other, third) = (budget.account(0), budget.account(1), budget.account(2));
        let held = ask(&one, 400 * MIB).expect("there is room");
        let more = ask(&other, 40 * MIB).expect("there is room");
        let mut first = ask(&third, 32 * MIB).unwrap_err();
        let short = ask(&third, 4096).expect("the reserve");
        assert!(one.is_contended());
        drop(held);
        assert_eq!(budget.held(), 72 * MIB + 4096, "it has what it waited for");
        assert!(!one.is_contended());
        assert!(is_granted(&mut first).is_some_and(|grant| grant.bytes() == 32 * MIB));
        drop((more, short));
        let held = ask(&one, 440 * MIB).expect("there is room");
        let unwanted = ask(&other, 30 * MIB).unwrap_err();
        drop(held);
        drop(unwanted);
        assert_eq!(budget.held(), 0, "who leaves takes nothing along");
    }

    #[test]
    fn short_requests_do_not_wait_for_long_ones() {
        let budget = Budget::new(64 * MIB);
        let exports: Vec<_> = (0..10).map(|number| budget.account(number)).collect();
        let long: Vec<Grant> = exports.iter().flat_map(|account| hoard(account, 7 * MIB)).collect();
        assert_eq!(long.len(), 8, "they leave the reserve");
        let mut waiting = ask(&exports[9], 8 * MIB).unwrap_err();
        let short: Vec<Grant> = exports.iter().flat_map(|account| hoard(account, 4096)).collect();
        assert!((1800..=2048).contains(&short.len()), "the reserve is theirs: {}", short.len());
        drop(long);
        assert!(is_granted(&mut waiting).is_some());
    }
}
