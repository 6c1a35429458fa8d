//! What the marks of a recording say was promised, at one time after the other.

use std::sync::Arc;

use anyhow::Context;

use crate::history::{Happening, History};
use crate::workload::model::Model;

/// The model of a workload, up to a time.
pub struct Expectation {
    history: Arc<History>,
    time: usize,
    model: Model,
}

impl Expectation {
    /// Before anything has happened.
    pub fn new(history: Arc<History>) -> Expectation {
        Expectation { history, time: 0, model: Model::default() }
    }

    /// What was promised until a time.
    pub fn at(&mut self, time: usize) -> anyhow::Result<&Model> {
        if time < self.time {
            (self.time, self.model) = (0, Model::default());
        }
        for event in &self.history.events[self.time..time] {
            if let Happening::Mark(text) = &event.what {
                self.model
                    .hear(text)
                    .with_context(|| format!("the mark {text:?} of record {}", event.seq))?;
            }
        }
        self.time = time;
        Ok(&self.model)
    }
}
