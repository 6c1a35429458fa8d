//! Those who are asked about a state: whether it holds what was promised.

pub mod command;
pub mod compare;
mod expectation;
pub mod ext4;
pub mod mount;
pub mod raw;

use std::sync::Arc;

pub use expectation::Expectation;

use crate::image::Image;

/// Judges states, of one history, one after the other.
pub trait Oracle {
    /// What is wrong with the export's content after a crash at a time; nothing if all promises were kept.
    ///
    /// # Errors
    /// Where there can be no judgement.
    fn judge(&mut self, time: usize, image: &Arc<Image>) -> anyhow::Result<Vec<String>>;

    /// What was promised at a time, as a number that differs where promises do.
    fn promises(&mut self, time: usize) -> anyhow::Result<u64>;
}
