//! Writes of one file that may wait for the disk: by one thread at a time, many at once.
//!
//! Buffered writes to one file exclude each other in the kernel, so a second thread would only wait for the
//! first. While that one writes, others queue up; it takes them all when it comes back, and answers them all
//! when it has written them. What is under load thus costs one hop to a thread for many writes, a write that
//! is alone begins at once, and a disk that hangs holds up one thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;

use super::Share;
use crate::buf::IoBuf;

/// Writes that are answered together: more would keep the first ones waiting for the last.
const TOGETHER_MAX: usize = 32;

/// The line of writes to one file.
pub struct Lane {
    share: Share,
    shared: Arc<Shared>,
}

struct Shared {
    file: Arc<File>,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    waiting: Vec<Write>,
    /// A thread is at it, or on its way.
    served: bool,
}

struct Write {
    at: u64,
    data: IoBuf,
    done: oneshot::Sender<io::Result<()>>,
}

impl Lane {
    /// A line of writes to `file`, served by a share of the pool.
    #[must_use]
    pub fn new(file: Arc<File>, share: Share) -> Lane {
        Lane { share, shared: Arc::new(Shared { file, line: Mutex::default() }) }
    }

    /// Writes the data at byte `at`, also if nobody waits any more.
    pub async fn write(&self, at: u64, data: IoBuf) -> io::Result<()> {
        let (done, told) = oneshot::channel();
        if self.shared.join(Write { at, data, done }) {
            serve(self.shared.clone(), &self.share);
        }
        told.await.unwrap_or_else(|_| Err(io::Error::other("an I/O thread panicked")))
    }
}

impl Shared {
    /// Puts a write into the line; returns whether it must be served.
    fn join(&self, write: Write) -> bool {
        let mut line = self.lock();
        line.waiting.push(write);
        !std::mem::replace(&mut line.served, true)
    }

    /// The next writes.
    fn next(&self) -> Vec<Write> {
        let mut line = self.lock();
        let some = line.waiting.len().min(TOGETHER_MAX);
        line.waiting.drain(..some).collect()
    }

    /// Whether the line must be served once more; if it is empty, it is served no more.
    fn has_more(&self) -> bool {
        let mut line = self.lock();
        line.served = !line.waiting.is_empty();
        line.served
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the line until it is empty, one batch at a time: between two of them others have their turn.
fn serve(shared: Arc<Shared>, share: &Share) {
    let again = share.clone();
    share.begin(move || {
        if Served(&shared).serve() {
            serve(shared, &again);
        }
    });
}

/// The duty to serve the line.
struct Served<'a>(&'a Shared);

impl Served<'_> {
    /// Writes a batch; returns whether there is more.
    fn serve(self) -> bool {
        let done: Vec<_> = self
            .0
            .next()
            .into_iter()
            .map(|write| (self.0.file.write_all_at(&write.data, write.at), write.done))
            .collect();
        let more = self.0.has_more();
        for (result, done) in done {
            let _nobody_may_wait = done.send(result);
        }
        more
    }
}

impl Drop for Served<'_> {
    /// Where serving has panicked, whoever waits is told, and the next one begins anew.
    fn drop(&mut self) {
        let mut line = self.0.lock();
        if std::thread::panicking() {
            *line = Line::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Pool;
    use futures::executor::block_on;
    use futures::future::join_all;

    #[test]
    fn many_writes_are_each_answered_with_what_became_of_them() {
        let pool = Pool::start(4).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let lane = Lane::new(Arc::new(file.reopen().unwrap()), pool.share());
        let writes = (0..200_u64).map(|n| lane.write(n * 4, IoBuf::from(&n.to_be_bytes()[4..])));
        assert!(block_on(join_all(writes)).iter().all(Result::is_ok));
        let written = std::fs::read(file.path()).unwrap();
        assert!((0..200_u32).eq(written.chunks(4).map(|four| u32::from_be_bytes(four.try_into().unwrap()))));

        let lane = Lane::new(Arc::new(File::open(file.path()).unwrap()), pool.share());
        let writes = (0..40).map(|n| lane.write(n, IoBuf::zeroed(1)));
        assert!(block_on(join_all(writes)).iter().all(Result::is_err), "it is open for reading only");
    }
}
