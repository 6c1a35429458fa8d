//! A fixed pool of threads for everything that may block.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures::channel::oneshot;

/// Threads of the pool: enough that a handful of requests stuck on a slow disk do not stop the
/// others, few enough that a hundred exports do not cost a hundred stacks.
pub const THREADS: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Runs blocking jobs; clones share the threads.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads.
    pub fn start(threads: usize) -> io::Result<Pool> {
        let shared = Arc::new(Shared { queue: Mutex::default(), ready: Condvar::new() });
        for number in 0..threads {
            let shared_with_thread = shared.clone();
            let thread = thread::Builder::new()
                .name(format!("io-{number}"))
                .spawn(move || shared_with_thread.work())?;
            shared.lock().threads.push(thread);
        }
        Ok(Pool { shared })
    }

    /// Runs `job` on some thread and waits for its result. The job runs to its end even if nobody
    /// waits any more; jobs start in the order in which this was called.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.begin(move || {
            let _nobody_may_wait = sender.send(job());
        });
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("an I/O thread panicked")))
    }

    /// Runs `job` on some thread, in the order in which this was called.
    pub fn begin(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.lock().jobs.push_back(Box::new(job));
        self.shared.ready.notify_one();
    }

    /// Lets the threads finish every job that was given and end.
    pub fn close(&self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        let threads = std::mem::take(&mut queue.threads);
        drop(queue);
        self.shared.ready.notify_all();
        for thread in threads {
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // A job that panics loses its sender, which its caller sees as an error; the thread
            // must live on for the others.
            let _panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn results_errors_and_panics_come_back() {
        let pool = Pool::start(2).unwrap();
        assert_eq!(block_on(pool.run(|| Ok(7))).unwrap(), 7);
        let error = block_on(pool.run(|| Err::<(), _>(io::Error::from_raw_os_error(28)))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28));
        for _ in 0..3 {
            assert!(block_on(pool.run(|| -> io::Result<()> { panic!("planted") })).is_err());
        }
        assert_eq!(block_on(pool.run(|| Ok(8))).unwrap(), 8);
    }

    #[test]
    fn close_finishes_what_was_given() {
        let pool = Pool::start(1).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for n in 0..10 {
            let sender = sender.clone();
            let mut run = Box::pin(pool.run(move || {
                sender.send(n).map_err(io::Error::other)?;
                Ok(())
            }));
            // One poll hands the job over; the future is then dropped unfinished.
            let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
            let _pending = run.as_mut().poll(cx);
        }
        pool.close();
        assert_eq!(receiver.try_iter().collect::<Vec<i32>>(), (0..10).collect::<Vec<_>>());
    }
}
