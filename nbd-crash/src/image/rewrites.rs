//! What writes have made of pages, worked out once.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use twox_hash::XxHash3_64;

use super::page::{Page, overwrite};
use crate::history::Write;

/// What writes have made of pages, so that the states of one time, which keep the same writes in many combinations,
/// need not copy and hash the same bytes again and again. With it a state costs a reference per page that it changes.
#[derive(Default)]
pub struct Rewrites {
    known: HashMap<Rewrite, Rewritten, BuildHasherDefault<Spread>>,
    /// How many pages were made anew rather than found here.
    pub made: u64,
}

impl Rewrites {
    /// A page after those of its sectors that have older content have got a write's, and by what an image's hash changes
    /// with it.
    pub(super) fn after(
        &mut self,
        before: Arc<Page>,
        page: u64,
        sectors: u8,
        from: u32,
        write: &Write,
    ) -> (Arc<Page>, u64) {
        let key = Rewrite { page, before: Arc::as_ptr(&before).addr(), from, sectors };
        if let Some(known) = self.known.get(&key) {
            return (known.after.clone(), known.change);
        }
        self.made += 1;
        let mut after = before.clone();
        let change = overwrite(Arc::make_mut(&mut after), page, sectors, from, write);
        if self.known.len() == REWRITES_MAX {
            self.known.clear();
        }
        self.known.insert(key, Rewritten { after: after.clone(), change, _before: before });
        (after, change)
    }
}

/// Sectors of a write that meet a page, which is known by its address: whoever knows a rewrite holds its page.
#[derive(PartialEq, Eq)]
struct Rewrite {
    page: u64,
    before: usize,
    from: u32,
    sectors: u8,
}

struct Rewritten {
    after: Arc<Page>,
    /// By what the image's hash changes.
    change: u64,
    _before: Arc<Page>,
}

/// Rewrites that are kept: some 64 MiB for a thread.
const REWRITES_MAX: usize = 1 << 13;

impl Hash for Rewrite {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let write = u64::from(self.from) << 8 | u64::from(self.sectors);
        hasher.write_u64(self.page.rotate_left(40) ^ (self.before as u64).rotate_left(17) ^ write);
    }
}

/// Spreads page numbers over a table.
#[derive(Default, Clone)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_64::oneshot(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing: the table looks at the upper bits, too.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }
}
