//! What the command says while it runs. Nothing that becomes of it may matter: lines are written by a thread of their
//! own, and where nobody reads them, or nothing takes them, they are lost.

use crate::background::{Errors, is_waited_for};
use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;
use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::EitherWriter;

/// Lines that wait for a slow reader; what comes then is lost.
const LINES_MAX: usize = 512;
/// How long the end waits for them.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The writers, until the end.
#[derive(Debug)]
pub struct Log {
    errors: NonBlocking,
    events: NonBlocking,
    guards: Vec<WorkerGuard>,
}

impl Log {
    /// Begins to log on standard error what is at least that important.
    #[must_use]
    pub fn start(level: Level) -> Log {
        let (errors, first) = lossy().thread_name("log").finish(Errors);
        let (events, second) = lossy().thread_name("events").finish(stdout());
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(Sink(errors.clone()))
            .without_time()
            .with_target(false)
            .with_ansi(stderr().is_terminal())
            // It would be told on standard error, which may be what has gone.
            .log_internal_errors(false)
            .init();
        Log { errors, events, guards: vec![first, second] }
    }

    /// Standard output, for what a keeper tells while it runs.
    #[must_use]
    pub fn events(&self) -> NonBlocking {
        self.events.clone()
    }

    /// Says what went wrong, and ends.
    pub fn fail(mut self, error: &anyhow::Error) {
        // See above.
        let _ = writeln!(self.errors, "nbd-attach: {error:#}");
        self.end();
    }

    /// Waits a moment for what was said to be written.
    pub fn end(self) {
        let (done, wait) = sync_channel(1);
        let guards = self.guards;
        thread::spawn(move || {
            drop(guards);
            // Whoever waited may have given up.
            let _ = done.send(());
        });
        // A reader that does not read must not keep us.
        let _ = wait.recv_timeout(LAST_WORDS);
    }
}

/// Where lines go.
struct Sink(NonBlocking);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = EitherWriter<Errors, NonBlocking>;

    fn make_writer(&'a self) -> Self::Writer {
        // A line that waits here would come too late to be shown by the command that waits.
        if is_waited_for() { EitherWriter::A(Errors) } else { EitherWriter::B(self.0.clone()) }
    }
}

fn lossy() -> NonBlockingBuilder {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX)
}
