//! How long a test waits before it calls something hung: every limit of this crate and of `tests` is a [`Deadline`].
//!
//! A limit is there to end a hang, not to measure, and must not fire because a machine is slow or busy. So a deadline
//! counts the time in which the machine kept up: while anything on it waits for a processor, which the kernel tells in
//! `/proc/pressure/cpu`, a tenth of the time counts, so that a hang ends on a busy machine, too. A guest that took longer
//! to boot than usual gets longer for all that it does, in proportion (see [`crate::Vm::run`]): an emulated processor
//! may be slow with nobody else at work. Where a wait cannot be looked at in between, such as a socket's, it gets
//! [`longest`].

use std::fs;
use std::time::{Duration, Instant};

/// The part of the time that counts however busy the machine is, as a divisor.
const STRETCH_MAX: u32 = 10;
/// The same where the kernel does not tell whether anybody waits.
const STRETCH_BLIND: u32 = 4;

/// The end of a wait.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    limit: Duration,
    began: Instant,
    /// How long somebody had waited for a processor when it began.
    busy: Option<Duration>,
}

impl Deadline {
    /// After so long on a machine that keeps up, and later on one that does not.
    pub fn after(limit: Duration) -> Deadline {
        Deadline { limit, began: Instant::now(), busy: busy() }
    }

    /// What has been counted until now.
    pub fn spent(&self) -> Duration {
        let busy = self.busy.zip(busy()).map(|(before, now)| now.saturating_sub(before));
        counted(self.began.elapsed(), busy)
    }

    /// How long it certainly is until then: whoever has waited so long looks again. Zero once it has passed.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.spent())
    }

    /// Whether it is over.
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// The longest that a deadline of this limit may take on any machine.
pub fn longest(limit: Duration) -> Duration {
    limit * STRETCH_MAX
}

/// How long there has been somebody on this machine who waited for a processor, since it was started.
fn busy() -> Option<Duration> {
    parse(&fs::read_to_string("/proc/pressure/cpu").ok()?)
}

fn parse(pressure: &str) -> Option<Duration> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    some.rsplit_once("total=")?.1.trim().parse().ok().map(Duration::from_micros)
}

fn counted(elapsed: Duration, busy: Option<Duration>) -> Duration {
    match busy {
        Some(busy) => elapsed.saturating_sub(busy).max(elapsed / STRETCH_MAX),
        None => elapsed / STRETCH_BLIND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_somebody_waits_for_a_processor_counts_a_tenth() {
        let [none, one, ten, hundred] = [0, 1, 10, 100].map(Duration::from_secs);
        assert_eq!(counted(hundred, Some(none)), hundred);
        assert_eq!(counted(hundred, Some(one)), hundred - one);
        // All the time and more, as the two are not read at the same moment.
        assert_eq!(counted(hundred, Some(hundred + one)), ten);
        assert_eq!(counted(hundred, None), hundred / 4);
    }

    #[test]
    fn the_kernel_s_words_are_read() {
        let words = "some avg10=62.59 avg60=80.64 avg300=89.33 total=1470764843\nfull avg10=0.00 total=7\n";
        assert_eq!(parse(words), Some(Duration::from_micros(1_470_764_843)));
        assert_eq!(parse("full avg10=0.00 total=7\n"), None);
    }

    #[test]
    fn a_deadline_passes() {
        let deadline = Deadline::after(Duration::from_millis(1));
        while !deadline.has_passed() {
            std::thread::sleep(deadline.left());
        }
        assert!(deadline.spent() >= Duration::from_millis(1));
    }
}
