//! Where lines go: to standard error, by a thread that alone waits for it.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

use crate::print::takes;

/// Lines that wait to be written. More than a burst has, and at most some hundred KiB.
const LINES_MAX: usize = 1024;
/// How long the end of the process waits for the log.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// The way to standard error.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Shared>);

#[derive(Default)]
struct Shared {
    background: OnceLock<NonBlocking>,
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    /// Lines that were given to the thread, some of which were lost on the way.
    given: usize,
    /// Lines that it was done with.
    done: usize,
    /// Lines that were lost by those who write themselves.
    lost: usize,
    told: usize,
}

impl Sink {
    /// Starts the thread, unless there is one.
    pub(crate) fn start(&self) {
        self.0.background.get_or_init(|| {
            let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
            let (lines, guard) = builder.thread_name("log").finish(Stderr(self.0.clone()));
            // Its drop waits in its own way, and prints.
            std::mem::forget::<WorkerGuard>(guard);
            lines
        });
    }

    /// Waits until everything was written, or not for long.
    pub(crate) fn drain(&self) {
        let counts = self.counts();
        let unfinished = |counts: &mut Counts| counts.done + self.dropped() < counts.given;
        drop(self.0.changed.wait_timeout_while(counts, DRAIN_MAX, unfinished));
    }

    /// How many lines were lost since the last call.
    pub(crate) fn lost(&self) -> usize {
        let dropped = self.dropped();
        let mut counts = self.counts();
        let all = counts.lost + dropped;
        all - std::mem::replace(&mut counts.told, all)
    }

    fn dropped(&self) -> usize {
        self.0.background.get().map_or(0, |lines| lines.error_counter().dropped_lines())
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = &'a Sink;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.background.get() {
            Some(lines) => {
                self.counts().given += 1;
                lines.clone().write_all(line)?;
            }
            None => {
                let written =
                    takes(io::stderr(), line.len(), Duration::ZERO) && io::stderr().write_all(line).is_ok();
                self.counts().lost += usize::from(!written);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error, as the thread sees it.
struct Stderr(Arc<Shared>);

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = self.write_whole(line);
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.done += 1;
        counts.lost += usize::from(written.is_err());
        self.0.changed.notify_all();
        // An error would be reported to nobody.
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stderr {
    /// Somebody who shares standard error may have made it one that does not wait.
    fn write_whole(&self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match io::stderr().write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    takes(io::stderr(), 1, Duration::from_secs(60));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
