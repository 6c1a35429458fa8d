//! Who shares a worker: what one of them may do by itself depends on the others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::engine::Seat;
use crate::export::Export;

/// The connections of one worker.
pub(super) struct Company {
    seat: Arc<Seat>,
    members: RefCell<Members>,
}

#[derive(Default)]
struct Members {
    /// Connections that have not chosen an export.
    undecided: usize,
    /// Connections of each export, by its address.
    exports: HashMap<usize, usize>,
}

impl Company {
    pub(super) fn new(seat: Arc<Seat>) -> Rc<Company> {
        Rc::new(Company { seat, members: RefCell::default() })
    }

    /// A connection has come.
    pub(super) fn join(self: &Rc<Company>) -> Member {
        self.change(|members| members.undecided += 1);
        Member { company: self.clone(), export: None }
    }

    fn change(&self, change: impl FnOnce(&mut Members)) {
        let mut members = self.members.borrow_mut();
        change(&mut members);
        self.seat.set_may_block(members.undecided == 0 && members.exports.len() == 1);
    }
}

/// A connection; it leaves when this is dropped.
pub(super) struct Member {
    company: Rc<Company>,
    export: Option<usize>,
}

impl Member {
    /// It has chosen an export.
    pub(super) fn choose(&mut self, export: &Arc<Export>) {
        let chosen = Arc::as_ptr(export).addr();
        self.leave();
        self.company.change(|members| *members.exports.entry(chosen).or_default() += 1);
        self.export = Some(chosen);
    }

    /// What others know of its thread.
    pub(super) fn seat(&self) -> Arc<Seat> {
        self.company.seat.clone()
    }

    fn leave(&self) {
        let export = self.export;
        self.company.change(|members| match export {
            None => members.undecided -= 1,
            Some(export) => {
                let others = members.exports.get_mut(&export).expect("it has joined");
                *others -= 1;
                if *others == 0 {
                    members.exports.remove(&export);
                }
            }
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::null::NullBackend;
    use crate::device::leaf;
    use crate::durability::{EarlyLimits, Mode};
    use crate::engine::seat;
    use crate::ledger;

    fn export() -> Arc<Export> {
        let storage = leaf(NullBackend { size: 1 << 20 });
        let limits = EarlyLimits::default();
        Arc::new(Export::new(String::new(), storage, Mode::Writeback, limits, ledger::volatile()))
    }

    #[test]
    fn only_where_all_use_one_export_may_one_of_them_block() {
        let (seat, one, other) = (Arc::new(Seat::default()), export(), export());
        seat.install();
        let company = Company::new(seat.clone());
        let may_block = || seat::take().is_some();
        assert!(!may_block());
        let mut first = company.join();
        assert!(!may_block());
        first.choose(&one);
        assert!(may_block());
        let mut second = company.join();
        assert!(!may_block(), "the second would wait for its choice");
        second.choose(&one);
        assert!(may_block());
        let mut third = company.join();
        third.choose(&other);
        assert!(!may_block());
        drop(third);
        assert!(may_block());
        drop((first, second));
        assert!(!may_block());
    }
}
