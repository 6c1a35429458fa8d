//! Looks at one state after the other, in several threads, and keeps those that break a promise.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;

use crate::contract::{Contract, Stability};
use crate::history::{Happening, History};
use crate::image::Base;
use crate::minimise::{self, Guilt};
use crate::oracle::Oracle;
use crate::state::{self, Kept};
use crate::states::{Choice, crash_points, subsets};
use crate::walk::Walk;

/// What to look at, and for how long.
pub struct Exploration {
    /// What happened.
    pub history: Arc<History>,
    /// What was there before.
    pub base: Base,
    /// What the device is taken to promise.
    pub contract: Contract,
    /// Which states.
    pub choice: Choice,
    /// Whether nothing can be judged before the first mark.
    pub only_after_marks: bool,
    /// For how long.
    pub budget: Budget,
    /// How many violations are enough.
    pub violations_max: usize,
    /// How many threads.
    pub threads: usize,
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// After so many distinct states.
    pub states: u64,
    /// After so long.
    pub time: Duration,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What the device was taken to promise.
    pub contract: Contract,
    /// Distinct states that were judged.
    pub states: u64,
    /// Times at which a crash was tried.
    pub points: usize,
    /// The most writes that could be lost at one time.
    pub volatile_max: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// States judged until the first violation.
    pub first_violation: Option<u64>,
    /// What broke a promise, in the order of finding.
    pub violations: Vec<Violation>,
}

/// A state that breaks a promise.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    /// Its name.
    pub state: String,
    /// What is wrong with it.
    pub faults: Vec<String>,
    /// What of it matters.
    pub guilt: Guilt,
}

/// What the threads share.
struct Shared<'e> {
    exploration: &'e Exploration,
    stability: Arc<Stability>,
    points: Vec<usize>,
    next: AtomicU64,
    /// States judged.
    judged: AtomicU64,
    /// States judged in this round.
    fresh: Mutex<(u64, u64)>,
    seen: Mutex<HashSet<u64>>,
    volatile_max: AtomicU64,
    stop: AtomicBool,
    found: Mutex<Found>,
    began: Instant,
}

#[derive(Default)]
struct Found {
    first: Option<u64>,
    violations: Vec<Violation>,
    error: Option<anyhow::Error>,
}

impl Exploration {
    /// Looks until the budget is spent, enough is found, or a whole round has had nothing new. `progress` is told now
    /// and then how many states were judged and how many broke a promise.
    ///
    /// # Errors
    /// An oracle's, where it could not judge.
    pub fn run(
        &self,
        oracle: &(dyn Fn() -> anyhow::Result<Box<dyn Oracle>> + Sync),
        progress: &mut dyn FnMut(u64, usize),
    ) -> anyhow::Result<Outcome> {
        let shared = Shared {
            exploration: self,
            stability: Arc::new(self.contract.stability(&self.history)),
            points: crash_points(&self.history, self.only_after_marks),
            next: AtomicU64::new(0),
            judged: AtomicU64::new(0),
            fresh: Mutex::default(),
            seen: Mutex::default(),
            volatile_max: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            found: Mutex::default(),
            began: Instant::now(),
        };
        let marked = self.history.events.iter().any(|event| matches!(event.what, Happening::Mark(_)));
        if self.only_after_marks && !marked {
            bail!("the recording has no mark of a workload: nothing is known to be promised");
        }
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads)
                .map(|_| {
                    scope.spawn(|| {
                        if let Err(error) = oracle().and_then(|oracle| shared.work(oracle)) {
                            shared.found().error.get_or_insert(error);
                            shared.stop.store(true, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                thread::park_timeout(Duration::from_millis(100));
                progress(shared.judged.load(Ordering::Relaxed), shared.found().violations.len());
            }
        });
        let (states, seconds) = (shared.judged.load(Ordering::Relaxed), shared.began.elapsed().as_secs_f64());
        let volatile_max = usize::try_from(shared.volatile_max.load(Ordering::Relaxed))?;
        let points = shared.points.len();
        let Found { first, mut violations, error } =
            shared.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Threads may have found their last at the same time.
        violations.truncate(self.violations_max);
        match error {
            Some(error) => Err(error),
            None => Ok(Outcome {
                contract: self.contract,
                states,
                points,
                volatile_max,
                seconds,
                first_violation: first,
                violations,
            }),
        }
    }
}

impl Shared<'_> {
    fn work(&self, mut oracle: Box<dyn Oracle>) -> anyhow::Result<()> {
        let Exploration { history, base, choice, .. } = self.exploration;
        let mut walk = Walk::new(history.clone(), self.stability.clone(), base.clone());
        let points = self.points.len() as u64;
        while !self.is_over() {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            let (round, number) = (task / points, task % points);
            if number == 0 && self.is_exhausted(round) {
                self.stop.store(true, Ordering::Relaxed);
                break;
            }
            walk.go(self.points[usize::try_from(number)?])?;
            self.volatile_max.fetch_max(walk.volatile.len() as u64, Ordering::Relaxed);
            for kept in subsets(history, &walk.volatile, *choice, round, number) {
                if self.is_over() {
                    break;
                }
                self.look(&mut walk, &mut *oracle, &kept)?;
            }
        }
        Ok(())
    }

    /// Judges a state unless an equal one was judged.
    fn look(&self, walk: &mut Walk, oracle: &mut dyn Oracle, kept: &[Kept]) -> anyhow::Result<()> {
        let Exploration { history, contract, .. } = self.exploration;
        let image = Arc::new(walk.state(kept)?);
        let key = image.hash ^ oracle.promises(walk.time)?.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            return Ok(());
        }
        let number = self.judged.fetch_add(1, Ordering::Relaxed) + 1;
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
        let faults = oracle.judge(walk.time, &image)?;
        drop(image);
        if faults.is_empty() {
            return Ok(());
        }
        {
            let mut found = self.found();
            found.first = Some(found.first.map_or(number, |first| first.min(number)));
            if found.violations.len() >= self.exploration.violations_max {
                return Ok(());
            }
        }
        let name = state::name(history, *contract, walk.time, &walk.volatile, kept);
        let guilt = minimise::minimise(history, *contract, walk, kept, oracle)?;
        let mut found = self.found();
        found.violations.push(Violation { state: name, faults, guilt });
        if found.violations.len() >= self.exploration.violations_max {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let Budget { states, time } = self.exploration.budget;
        self.stop.load(Ordering::Relaxed)
            || self.judged.load(Ordering::Relaxed) >= states
            || self.began.elapsed() >= time
    }

    /// At the beginning of a round: whether the last one had nothing new.
    fn is_exhausted(&self, round: u64) -> bool {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = *fresh;
        *fresh = (now, now);
        round > 0 && before == now
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
