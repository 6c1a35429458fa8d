//! Seeded randomness, and the memory that a disk is compared with.

/// SplitMix64: small, and the same numbers from the same seed for ever.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Seeded by `NBD_TESTS_SEED`, else by the clock; prints the seed so that a failure can be
    /// repeated.
    #[must_use]
    pub fn seeded() -> Rng {
        let seed = std::env::var("NBD_TESTS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::from(now.map_or(0, |now| now.subsec_nanos()))
        });
        println!("repeat with NBD_TESTS_SEED={seed}");
        Rng(seed)
    }

    /// Another sequence, for another thread.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng(self.number())
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}
