//! Threads for everything that may block, of which each export has a share.
//!
//! A disk that hangs keeps the threads that wait for it. So no export runs more than [`RUNNING_MAX`] jobs at
//! a time, the others wait in its own queue, and a job of an export that runs none never waits for a thread:
//! if all are busy, another one is started. Exports take turns, job by job, so that a busy one does not
//! starve the others.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures::channel::oneshot;

/// Threads that are started at once and stay.
pub const THREADS: usize = 16;
/// Threads at most: as many exports may hang at once and cost nobody else anything.
const THREADS_MAX: usize = 4096;
/// Jobs that one share runs at a time: enough for a disk to work on several, few enough that many disks may
/// hang.
const RUNNING_MAX: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run blocking jobs; clones share them.
#[derive(Clone)]
pub struct Pool {
    threads: Arc<Threads>,
}

/// The jobs of one export; clones are the same share.
#[derive(Clone)]
pub struct Share {
    pool: Pool,
    queue: Arc<Mutex<Queue>>,
}

/// Locked after [`Threads::state`], where both are.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: usize,
    /// Whether it stands among those that are ready.
    is_ready: bool,
}

struct Threads {
    state: Mutex<State>,
    /// There is a job, or there will be none any more.
    changed: Condvar,
    /// A thread has ended.
    ended: Condvar,
    /// How many stay although there is nothing to do.
    stay: usize,
}

#[derive(Default)]
struct State {
    /// Queues with a job that may begin, of which none runs. They come first, so that a queue never waits for
    /// another one's second job.
    fresh: VecDeque<Arc<Mutex<Queue>>>,
    /// Queues with another job that may begin.
    ready: VecDeque<Arc<Mutex<Queue>>>,
    idle: usize,
    closed: bool,
    /// Threads that have not ended.
    running: usize,
    /// Threads that were ever started.
    started: usize,
}

impl Pool {
    /// Starts so many threads.
    pub fn start(threads: usize) -> io::Result<Pool> {
        let (changed, ended) = (Condvar::new(), Condvar::new());
        let shared = Threads { state: Mutex::default(), changed, ended, stay: threads };
        let pool = Pool { threads: Arc::new(shared) };
        for _ in 0..threads {
            pool.start_thread(&mut pool.threads.lock())?;
        }
        Ok(pool)
    }

    /// A share for another export.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { pool: self.clone(), queue: Arc::default() }
    }

    /// Lets the threads finish every job that was given and end.
    pub fn close(&self) {
        let mut state = self.threads.lock();
        state.closed = true;
        self.threads.changed.notify_all();
        while state.running > 0 {
            state = self.threads.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn start_thread(&self, state: &mut State) -> io::Result<()> {
        let threads = self.threads.clone();
        let name = format!("io-{}", state.started);
        // Nobody joins it: one that is not needed any more ends, and leaves nothing behind.
        thread::Builder::new().name(name).spawn(move || threads.work())?;
        state.started += 1;
        state.running += 1;
        Ok(())
    }
}

impl Share {
    /// Runs `job` on some thread and waits for its result. The job runs to its end even if nobody
    /// waits any more; jobs of a share start in the order in which this was called.
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

    /// Runs `job` on some thread, after those of this share that were given before.
    pub fn begin(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.pool.threads.lock();
        {
            let mut queue = lock(&self.queue);
            queue.jobs.push_back(Box::new(job));
            state.offer(&self.queue, &mut queue);
        }
        let must_start = state.fresh.len() > state.idle && state.running < THREADS_MAX;
        if must_start && let Err(error) = self.pool.start_thread(&mut state) {
            tracing::warn!(%error, "cannot start another I/O thread; a job waits for one of the others");
        }
        drop(state);
        self.pool.threads.changed.notify_one();
    }
}

impl State {
    /// Puts a queue among those that are ready, if it is.
    fn offer(&mut self, shared: &Arc<Mutex<Queue>>, queue: &mut Queue) {
        if !queue.is_ready && !queue.jobs.is_empty() && queue.running < RUNNING_MAX {
            queue.is_ready = true;
            let line = if queue.running == 0 { &mut self.fresh } else { &mut self.ready };
            line.push_back(shared.clone());
        }
    }

    /// The next job, of the queue whose turn it is.
    fn take(&mut self) -> Option<(Arc<Mutex<Queue>>, Job)> {
        let shared = self.fresh.pop_front().or_else(|| self.ready.pop_front())?;
        let job = {
            let mut queue = lock(&shared);
            queue.is_ready = false;
            queue.running += 1;
            let job = queue.jobs.pop_front().expect("a queue that is ready has a job");
            self.offer(&shared, &mut queue);
            job
        };
        Some((shared, job))
    }

    fn ended(&mut self, shared: &Arc<Mutex<Queue>>) {
        let mut queue = lock(shared);
        queue.running -= 1;
        self.offer(shared, &mut queue);
    }
}

impl Threads {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((queue, job)) = state.take() {
                drop(state);
                // A job that panics loses its sender, which its caller sees as an error; the thread
                // must live on for the others.
                let _panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.lock();
                state.ended(&queue);
            } else if state.closed || state.running > self.stay {
                state.running -= 1;
                self.ended.notify_all();
                return;
            } else {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

/// Locks a mutex whose holders never leave their data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use std::sync::mpsc;

    #[test]
    fn results_errors_and_panics_come_back() {
        let share = Pool::start(2).unwrap().share();
        assert_eq!(block_on(share.run(|| Ok(7))).unwrap(), 7);
        let error = block_on(share.run(|| Err::<(), _>(io::Error::from_raw_os_error(28)))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28));
        for _ in 0..3 {
            assert!(block_on(share.run(|| -> io::Result<()> { panic!("planted") })).is_err());
        }
        assert_eq!(block_on(share.run(|| Ok(8))).unwrap(), 8);
    }

    #[test]
    fn close_finishes_what_was_given() {
        let pool = Pool::start(1).unwrap();
        let share = pool.share();
        let (sender, receiver) = mpsc::channel();
        for n in 0..10 {
            let sender = sender.clone();
            let mut run = Box::pin(share.run(move || {
                sender.send(n).map_err(io::Error::other)?;
                Ok(())
            }));
            // One poll hands the job over; the future is then dropped unfinished.
            let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
            let _pending = run.as_mut().poll(cx);
        }
        pool.close();
        let mut finished: Vec<i32> = receiver.try_iter().collect();
        finished.sort_unstable();
        assert_eq!(finished, (0..10).collect::<Vec<_>>());
    }

    /// Jobs that hang until they are told to end.
    fn hang(share: &Share, jobs: usize) -> (Vec<mpsc::Sender<()>>, mpsc::Receiver<usize>) {
        let (began, begun) = mpsc::channel();
        let ends = (0..jobs).map(|n| {
            let (end, ended) = mpsc::channel();
            let began = began.clone();
            share.begin(move || {
                began.send(n).expect("the test waits");
                let _told_or_dropped = ended.recv();
            });
            end
        });
        (ends.collect(), begun)
    }

    #[test]
    fn shares_that_hang_take_nothing_from_the_others() {
        let pool = Pool::start(2).unwrap();
        let hung: Vec<_> = (0..20)
            .map(|_| {
                let share = pool.share();
                let (ends, begun) = hang(&share, RUNNING_MAX * 4);
                // At least one began, whatever the others hold.
                begun.recv().expect("a job begins");
                (share, ends, begun)
            })
            .collect();
        assert_eq!(block_on(pool.share().run(|| Ok(7))).unwrap(), 7);
        for (_, _, begun) in &hung {
            assert!(begun.try_iter().count() < RUNNING_MAX, "the rest waits in its own queue");
        }
        drop(hung);
        pool.close();
    }

    #[test]
    fn threads_that_are_not_needed_any_more_end() {
        let pool = Pool::start(2).unwrap();
        let hung: Vec<_> = (0..10).map(|_| hang(&pool.share(), 1)).collect();
        for (_, begun) in &hung {
            begun.recv().expect("it begins");
        }
        assert!(pool.threads.lock().running >= 10);
        drop(hung);
        let mut state = pool.threads.lock();
        while state.running > 2 {
            state = pool.threads.ended.wait(state).unwrap();
        }
    }

    #[test]
    fn a_busy_share_goes_to_the_back_after_each_job() {
        let pool = Pool::start(1).unwrap();
        let (busy, other) = (pool.share(), pool.share());
        let (mut ends, begun) = hang(&busy, 1);
        begun.recv().expect("it begins");
        let (sender, order) = mpsc::channel();
        let note = |share: &Share, name: &'static str| {
            let sender = sender.clone();
            share.begin(move || sender.send(name).expect("the test waits"));
        };
        (0..3).for_each(|_| note(&busy, "busy"));
        note(&other, "other");
        ends.clear();
        let names: Vec<&str> = order.iter().take(4).collect();
        assert!(names[0] == "other" || names[1] == "other", "{names:?}");
        pool.close();
    }
}
