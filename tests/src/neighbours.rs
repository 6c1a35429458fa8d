//! Whether anybody waits for somebody else's disk, client or log: a good client's worst waits while its neighbours are
//! in [trouble](Trouble), beside those of the same client when they were not.
//!
//! | module | what it is for |
//! |---|---|
//! | `trouble` | what neighbours, logs and operators can do to a server |
//! | `witness` | the good client, what it asks and how long it waits |
//! | [`table`] | what came of it |
//! | [`drip`] | a good client's latencies among clients that send and read a byte now and then |

pub mod drip;
pub mod table;
mod trouble;
mod witness;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use vm_tests::Deadline;

pub use self::trouble::Trouble;
pub use self::witness::{ASKED, Asked, Waits};
use self::witness::{LIMIT, Witness};
use crate::server::Server;

/// What the server may take for its end, given on its command line: once for clients to read, once for disks.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Log lines that a server may write in a minute.
pub const LINES_PER_MINUTE_MAX: u64 = 100;

/// What came of one trouble.
pub struct Outcome {
    /// Which it was.
    pub trouble: Trouble,
    /// The worst waits before it began.
    pub before: Waits,
    /// The worst waits while it lasted.
    pub during: Waits,
    /// From SIGTERM to the end of the process.
    pub end: Duration,
    /// How long it lasted.
    pub lasted: Duration,
    /// Lines that were logged meanwhile, where the log can be read.
    pub log_lines: Option<u64>,
    /// What was not answered, or answered wrongly, or lost.
    pub faults: Vec<String>,
}

impl Outcome {
    /// Serves a good client and its neighbours, who are in trouble for so long. Nothing where this machine lacks what the
    /// trouble takes.
    pub fn of(trouble: Trouble, lasting: Duration) -> Result<Option<Outcome>> {
        let Some(mut scene) = trouble.prepare()? else { return Ok(None) };
        let good = crate::disk::Disk::sparse(witness::SIZE);
        let operator = crate::operator::Operator::beside(&good);
        let seconds = SHUTDOWN.as_secs().to_string();
        let mut builder = Server::builder().export(format!("good={}", good.path().display())).unix().args(&[
            "--workers",
            "2",
            "--shutdown-timeout",
            &seconds,
            "--max-memory",
            "256M",
        ]);
        for (name, spec) in &scene.exports {
            builder = builder.export(format!("{name}={spec}"));
        }
        let server = operator.of(scene.dress(builder, good.dir())).start();
        let mut witness = Witness::connect(&server, &good, &operator)?;
        let mut before = Waits::default();
        for _ in 0..20 {
            witness.round(&mut before, |_| false)?;
        }

        let lines = scene.log_is_read.then(|| server.log().lines().count() as u64);
        let began = Instant::now();
        let attack = scene.begin(trouble, &server)?;
        let (mut during, mut faults) = (Waits::default(), Vec::new());
        while began.elapsed() < lasting || during.rounds < 20 {
            if let Err(fault) = witness.round(&mut during, |asked| trouble.denies(asked)) {
                faults.push(format!("{fault:#}"));
                break;
            }
        }
        let lasted = began.elapsed();
        let log_lines = lines.map(|before| server.log().lines().count() as u64 - before);

        server.signal(Signal::SIGTERM);
        let terminated = Instant::now();
        let deadline = Deadline::after(LIMIT);
        // Whose disk hangs cannot go whole; its first thread has left by then.
        let has_ended = crate::seen(|| (is_over(&server) || deadline.has_passed()).then_some(()));
        let end = terminated.elapsed();
        if has_ended.is_none() || deadline.has_passed() {
            faults.push("SIGTERM does not end it".to_owned());
        }
        scene.end();
        drop(attack);
        let exit = server.wait();
        if let Some(code) = trouble.exit_code()
            && exit.code != Some(code)
        {
            faults.push(format!("it ended with {:?}", exit.code));
        }
        if exit.log.contains("panicked") {
            faults.push("it panicked".to_owned());
        }
        faults.extend(witness.lost(&good));
        Ok(Some(Outcome { trouble, before, during, end, lasted, log_lines, faults }))
    }

    /// The log lines of a minute like this.
    #[must_use]
    pub fn lines_per_minute(&self) -> Option<u64> {
        let seconds = self.lasted.as_secs().max(1);
        // What is told once at the beginning is not told again in every minute.
        self.log_lines.map(|lines| if seconds < 60 { lines } else { lines * 60 / seconds })
    }

    /// What its end may take at most.
    #[must_use]
    pub fn end_limit(&self) -> Duration {
        // A second for clients that have not closed yet, and one for a log that nobody takes.
        let usual = Duration::from_millis(2500);
        if self.trouble.delays_the_end() { usual + SHUTDOWN * 2 } else { usual }
    }
}

/// Whether the first thread of a server has ended.
fn is_over(server: &Server) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid()));
    stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}

/// Every trouble at once, each with a server of its own; those that could not be made are told, too.
#[must_use]
pub fn all_at_once(troubles: &[Trouble], lasting: Duration) -> (Vec<Outcome>, Vec<String>) {
    std::thread::scope(|scope| {
        let running: Vec<_> = troubles
            .iter()
            .map(|trouble| (trouble, scope.spawn(move || Outcome::of(*trouble, lasting))))
            .collect();
        let (mut outcomes, mut failures) = (Vec::new(), Vec::new());
        for (trouble, thread) in running {
            match thread.join() {
                Ok(Ok(outcome)) => outcomes.extend(outcome),
                Ok(Err(error)) => failures.push(format!("{trouble}: {error:#}")),
                Err(_panic) => failures.push(format!("{trouble}: the test panicked")),
            }
        }
        (outcomes, failures)
    })
}
