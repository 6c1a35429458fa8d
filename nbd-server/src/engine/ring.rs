//! One io_uring per worker: reads and writes that may wait for the disk, without a thread for each.
//!
//! Whoever polls an [`Operation`] first puts it into the ring's queue and wakes the worker's driver, which
//! calls [`Ring::turn`] once everything else that is ready has run: what came together is submitted
//! together. The driver sleeps on the ring's descriptor in the worker's own reactor.
//!
//! The buffer and the file of an operation belong to the ring until the kernel has answered, so that to
//! drop an [`Operation`] neither undoes it nor takes its memory away. The ring can read and write and
//! nothing else (`IORING_REGISTER_RESTRICTIONS`): seccomp does not see what goes through it.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;

use crate::buf::IoBuf;

/// Operations that one submission takes; more are submitted at once.
const SUBMISSIONS: u32 = 256;
/// Operations in flight: as many answers as the kernel keeps without asking for memory.
const IN_FLIGHT_MAX: usize = 4096;

/// A worker's ring.
pub struct Ring {
    state: RefCell<State>,
}

struct State {
    uring: IoUring,
    operations: Slab<Held>,
    /// Of the driver, once it has run.
    driver: Option<Waker>,
    unsubmitted: bool,
}

/// What an operation needs for as long as the kernel is at it.
struct Held {
    _file: Arc<File>,
    buf: IoBuf,
    stage: Stage,
}

enum Stage {
    /// In the kernel's hands; whom to wake.
    Under(Waker),
    /// In the kernel's hands, and nobody waits any more.
    Abandoned,
    /// What the kernel said: bytes, or an error below zero.
    Done(i32),
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
}

/// The ring of this thread, if it has one with room for another operation.
#[must_use]
pub fn current() -> Option<Rc<Ring>> {
    CURRENT
        .with_borrow(|ring| ring.clone().filter(|ring| ring.state.borrow().operations.len() < IN_FLIGHT_MAX))
}

impl Ring {
    /// A ring that can only read and write. It may be used on one thread, which need not be this one.
    ///
    /// # Errors
    /// Where the kernel has none or forbids them (`io_uring_disabled`, seccomp).
    pub fn new() -> io::Result<Ring> {
        let completions = u32::try_from(IN_FLIGHT_MAX).map_err(io::Error::other)?;
        let uring = IoUring::builder()
            .setup_r_disabled()
            .setup_coop_taskrun()
            .setup_cqsize(completions)
            .build(SUBMISSIONS)?;
        let mut allowed = [Restriction::sqe_op(opcode::Read::CODE), Restriction::sqe_op(opcode::Write::CODE)];
        uring.submitter().register_restrictions(&mut allowed)?;
        // What cannot begin without waiting is given to threads of the kernel, by default so few that one disk that hangs
        // takes them all. An older kernel has no such limit to set.
        let workers = u32::try_from(IN_FLIGHT_MAX).map_err(io::Error::other)?;
        let _older_kernel = uring.submitter().register_iowq_max_workers(&mut [workers, workers]);
        uring.submitter().register_enable_rings()?;
        let operations = Slab::new();
        Ok(Ring { state: RefCell::new(State { uring, operations, driver: None, unsubmitted: false }) })
    }

    /// Makes this the ring of the thread.
    pub fn install(self: &Rc<Ring>) {
        CURRENT.set(Some(self.clone()));
    }

    /// Reads into the buffer from its byte `from` on; that byte is the file's byte `at`. Fails with
    /// [`io::ErrorKind::ResourceBusy`] where the ring takes nothing now.
    pub fn read(self: &Rc<Ring>, file: Arc<File>, buf: IoBuf, from: usize, at: u64) -> Operation {
        self.operation(What::Read, file, buf, from, at)
    }

    /// Writes the buffer from its byte `from` on to the file's byte `at` on. Fails like [`Ring::read`].
    pub fn write(self: &Rc<Ring>, file: Arc<File>, buf: IoBuf, from: usize, at: u64) -> Operation {
        self.operation(What::Write, file, buf, from, at)
    }

    fn operation(
        self: &Rc<Ring>,
        what: What,
        file: Arc<File>,
        buf: IoBuf,
        from: usize,
        at: u64,
    ) -> Operation {
        Operation { ring: self.clone(), progress: Progress::New(what, file, buf, from, at) }
    }

    /// Submits what is queued, and wakes whoever's operation has been answered. The waker is woken when
    /// there is more to submit.
    pub fn turn(&self, driver: &Waker) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if !state.driver.as_ref().is_some_and(|waker| waker.will_wake(driver)) {
            state.driver = Some(driver.clone());
        }
        if std::mem::take(&mut state.unsubmitted) {
            state.submit(0)?;
        }
        let woken = state.reap();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        Ok(())
    }
}

impl AsRawFd for Ring {
    /// Readable when the kernel has answered.
    fn as_raw_fd(&self) -> RawFd {
        self.state.borrow().uring.as_raw_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        // The kernel may still write into buffers of operations that nobody waits for.
        while state.operations.iter().any(|(_, held)| !matches!(held.stage, Stage::Done(_))) {
            if state.submit(1).is_err() {
                // Memory that the kernel may write to is never used for anything else.
                std::mem::forget(std::mem::take(&mut state.operations));
                return;
            }
            let _nobody_to_wake = state.reap();
        }
    }
}

impl State {
    fn submit(&mut self, wait_for: usize) -> io::Result<()> {
        loop {
            match self.uring.submit_and_wait(wait_for) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory, or its queue of answers is full: what is left is
                // submitted in a later turn.
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EAGAIN | nix::libc::EBUSY)) => {
                    self.unsubmitted = true;
                    self.driver.as_ref().inspect(|driver| driver.wake_by_ref());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the kernel's answers; returns whom to wake.
    fn reap(&mut self) -> Vec<Waker> {
        let State { uring, operations, .. } = self;
        let answers = uring.completion();
        answers
            .filter_map(|answer: cqueue::Entry| {
                let key = usize::try_from(answer.user_data()).ok()?;
                match std::mem::replace(&mut operations[key].stage, Stage::Done(answer.result())) {
                    Stage::Under(waker) => Some(waker),
                    Stage::Abandoned => {
                        operations.remove(key);
                        None
                    }
                    Stage::Done(_) => unreachable!("the kernel answers once"),
                }
            })
            .collect()
    }

    #[expect(unsafe_code, reason = "the kernel is given memory")]
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the entry's file and buffer are held in `operations` until the kernel has answered, and
        // nobody reaches them there; a buffer's bytes do not move when the buffer does.
        let push = |uring: &mut IoUring| unsafe { uring.submission().push(entry) };
        if push(&mut self.uring).is_ok() {
            return Ok(());
        }
        // What is queued makes room by being submitted, unless the kernel is short of memory.
        self.submit(0)?;
        push(&mut self.uring).map_err(|_| io::ErrorKind::ResourceBusy.into())
    }

    /// Queues an operation and has it submitted with whatever else comes in this tick.
    fn begin(
        &mut self,
        what: What,
        file: Arc<File>,
        mut buf: IoBuf,
        from: usize,
        at: u64,
        waker: Waker,
    ) -> Result<usize, (io::Error, IoBuf)> {
        let descriptor = types::Fd(file.as_raw_fd());
        let part = &mut buf[from..];
        // What does not fit is left to a second operation, like everything that is moved in part.
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let entry = match what {
            What::Read => opcode::Read::new(descriptor, part.as_mut_ptr(), len).offset(at).build(),
            What::Write => opcode::Write::new(descriptor, part.as_ptr(), len).offset(at).build(),
        };
        let key = self.operations.insert(Held { _file: file, buf, stage: Stage::Under(waker) });
        if let Err(error) = self.push(&entry.user_data(key as u64)) {
            return Err((error, self.operations.remove(key).buf));
        }
        self.unsubmitted = true;
        self.driver.as_ref().inspect(|driver| driver.wake_by_ref());
        Ok(key)
    }
}

#[derive(Clone, Copy)]
enum What {
    Read,
    Write,
}

/// A read or a write; resolves to the bytes that were moved, and the buffer.
pub struct Operation {
    ring: Rc<Ring>,
    progress: Progress,
}

enum Progress {
    New(What, Arc<File>, IoBuf, usize, u64),
    Under(usize),
    Over,
}

impl Future for Operation {
    type Output = (io::Result<usize>, IoBuf);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = this.ring.state.borrow_mut();
        match std::mem::replace(&mut this.progress, Progress::Over) {
            Progress::New(what, file, buf, from, at) => {
                match state.begin(what, file, buf, from, at, cx.waker().clone()) {
                    Ok(key) => this.progress = Progress::Under(key),
                    Err((error, buf)) => return Poll::Ready((Err(error), buf)),
                }
                Poll::Pending
            }
            Progress::Under(key) => match &mut state.operations[key].stage {
                Stage::Done(said) => {
                    let said = *said;
                    let buf = state.operations.remove(key).buf;
                    let moved = usize::try_from(said).map_err(|_| io::Error::from_raw_os_error(-said));
                    Poll::Ready((moved, buf))
                }
                Stage::Under(waker) => {
                    waker.clone_from(cx.waker());
                    this.progress = Progress::Under(key);
                    Poll::Pending
                }
                Stage::Abandoned => unreachable!("it is abandoned when this is dropped"),
            },
            Progress::Over => unreachable!("it is not polled again"),
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let Progress::Under(key) = self.progress else { return };
        let mut state = self.ring.state.borrow_mut();
        if let Stage::Under(_) = state.operations[key].stage {
            state.operations[key].stage = Stage::Abandoned;
        } else {
            state.operations.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
