//! Being told that a socket has died, while the kernel uses it.

use nix::sys::mman::{MlockAllFlags, mlockall};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use tokio::sync::mpsc::UnboundedSender;

/// Enough for a call of poll(2): all of it stays in memory.
const STACK: usize = 64 << 10;

/// Sends `number` once the socket at `place` is dead. Data that comes and goes wakes nobody: that is asked of
/// poll(2) alone, which is why a thread waits and not a reactor.
pub(super) fn until_dead(
    number: usize,
    sockets: Arc<[OwnedFd]>,
    place: usize,
    deaths: UnboundedSender<usize>,
) -> io::Result<()> {
    let wait = move || {
        let mut watched = [PollFd::new(&sockets[place], PollFlags::RDHUP)];
        while poll(&mut watched, None) == Err(Errno::INTR) {}
        let _keeper_may_have_ended = deaths.send(number);
    };
    thread::Builder::new().name(format!("watch-{number}")).stack_size(STACK).spawn(wait).map(drop)
}

/// Keeps the kernel from taking our memory away, or us: it might need us to write what it takes away.
pub(super) fn stay_in_memory() {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::warn!(
            "cannot lock our memory: {error}; never put swap or the root file system on the device"
        );
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("cannot ask to be spared when memory runs out: {error}");
    }
}
