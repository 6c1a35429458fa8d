//! Chance that can be had again: numbers from a seed, which a failing test names.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// A generator of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Chance {
    seed: u64,
    state: u64,
}

impl Chance {
    /// Chance from `NBD_VM_SEED`, or from a seed of its own; it is printed, and shown if the test fails.
    pub fn new() -> Chance {
        let given = std::env::var("NBD_VM_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
        println!("NBD_VM_SEED={seed}");
        Chance::from(seed)
    }

    /// What it began with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number within a range.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }
}

impl From<u64> for Chance {
    fn from(seed: u64) -> Chance {
        Chance { seed, state: seed }
    }
}

impl Default for Chance {
    fn default() -> Chance {
        Chance::new()
    }
}
