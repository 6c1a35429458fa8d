//! A walk through a history under a contract: at each time, what is durable and what may be lost.

use std::io;
use std::sync::Arc;

use crate::contract::Stability;
use crate::history::{Happening, History};
use crate::image::{Base, Image, Rewrites};
use crate::state::{self, Kept};

/// Where the walk is.
pub struct Walk {
    history: Arc<History>,
    stability: Arc<Stability>,
    base: Base,
    /// The time: events before it have happened.
    pub time: usize,
    /// What no crash can take.
    pub durable: Arc<Image>,
    /// Writes that a crash may take, in the order of receipt.
    pub volatile: Vec<usize>,
    rewrites: Rewrites,
}

impl Walk {
    /// Begins before the first event.
    pub fn new(history: Arc<History>, stability: Arc<Stability>, base: Base) -> Walk {
        let durable = Arc::new(Image::new(base.clone()));
        Walk {
            history,
            stability,
            base,
            time: 0,
            durable,
            volatile: Vec::new(),
            rewrites: Rewrites::default(),
        }
    }

    /// Goes to a time; to an earlier one by beginning anew.
    ///
    /// # Panics
    /// When something still holds what was durable before.
    pub fn go(&mut self, time: usize) -> io::Result<()> {
        if time < self.time {
            (self.time, self.volatile) = (0, Vec::new());
            self.durable = Arc::new(Image::new(self.base.clone()));
        }
        let durable = Arc::get_mut(&mut self.durable).expect("no state outlives its check");
        for now in self.time..time {
            if let Happening::Write(index) = self.history.events[now].what {
                self.volatile.push(index);
            }
            let Some(stable) = self.stability.at.get(&now) else { continue };
            for index in stable {
                durable.apply(*index, &self.history.writes, |_| true, &mut self.rewrites)?;
            }
            self.volatile.retain(|index| stable.binary_search(index).is_err());
            // What newer durable writes have hidden for good can be neither lost nor kept any more.
            self.volatile.retain(|index| durable.shows(*index, &self.history.writes[*index]));
        }
        self.time = time;
        Ok(())
    }

    /// What the export holds if it crashes now and some of the writes that could be lost were kept.
    pub fn state(&mut self, kept: &[Kept]) -> io::Result<Image> {
        state::content(&self.durable, &self.history, kept, &mut self.rewrites)
    }

    /// How many pages were made, for what is durable and for the states that were asked for.
    pub fn pages_made(&self) -> u64 {
        self.rewrites.made
    }
}
