//! Who shares a worker: what one of them may do by itself depends on the others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::engine::Seat;
use crate::export::Export;

/// The connections of one worker that have chosen an export.
pub(super) struct Company {
    /// What others know of the worker's thread.
    pub(super) seat: Arc<Seat>,
    /// How many use each export, by its address.
    exports: RefCell<HashMap<usize, usize>>,
}

impl Company {
    pub(super) fn new(seat: Arc<Seat>) -> Rc<Company> {
        Rc::new(Company { seat, exports: RefCell::default() })
    }

    /// A connection has chosen an export.
    pub(super) fn join(self: &Rc<Company>, export: &Arc<Export>) -> Member {
        let export = Arc::as_ptr(export).addr();
        *self.exports.borrow_mut().entry(export).or_default() += 1;
        self.tell();
        Member { company: self.clone(), export }
    }

    fn tell(&self) {
        let exports = self.exports.borrow();
        let together = if exports.len() == 1 { exports.values().sum() } else { 0 };
        self.seat.set_together(together);
    }
}

/// A connection; it leaves when this is dropped.
pub(super) struct Member {
    company: Rc<Company>,
    export: usize,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut exports = self.company.exports.borrow_mut();
        let left = exports.get_mut(&self.export).expect("it has joined");
        *left -= 1;
        if *left == 0 {
            exports.remove(&self.export);
        }
        drop(exports);
        self.company.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::null::NullBackend;
    use crate::device::leaf;
    use crate::durability::{EarlyLimits, Mode};
    use crate::engine::seat;
    use crate::epoch_store;

    fn export() -> Arc<Export> {
        let storage = leaf(NullBackend { size: 1 << 20 });
        let limits = EarlyLimits::default();
        Arc::new(Export::new(String::new(), storage, Mode::Writeback, limits, epoch_store::volatile()))
    }

    #[test]
    fn only_where_all_use_one_export_may_one_of_them_block() {
        let (seat, one, other) = (Arc::new(Seat::default()), export(), export());
        seat.install();
        let company = Company::new(seat.clone());
        let may_block = || seat::take().is_some();
        assert!(!may_block());
        let first = seat.occupy();
        assert!(!may_block());
        let first_member = company.join(&one);
        assert!(may_block());
        let second = seat.occupy();
        assert!(!may_block(), "the second would wait for its choice");
        let second_member = company.join(&one);
        assert!(may_block());
        let third = seat.occupy();
        let third_member = company.join(&other);
        assert!(!may_block());
        drop((third_member, third));
        assert!(may_block());
        drop((first_member, second_member));
        assert!(!may_block(), "they have yet to say goodbye");
        drop((first, second));
        assert!(!may_block());
    }
}
