//! Waiting for what a process on the host does: it says something, or it ends.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::patience::Deadline;

/// Something readable once the child has ended.
pub fn end_of(child: &Child) -> Result<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a child has a process id")?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits until one of them is readable, or at its end; tells for each whether it is. None is if time runs out.
pub fn readable<const N: usize>(these: [&dyn AsFd; N], until: Deadline) -> Result<[bool; N]> {
    loop {
        let left = until.left();
        let found = readable_within(these, left)?;
        if found.contains(&true) || left.is_zero() {
            return Ok(found);
        }
    }
}

/// The same, within so much time, for whoever has something else to look at in between.
pub fn readable_within<const N: usize>(these: [&dyn AsFd; N], time: Duration) -> Result<[bool; N]> {
    let mut watched = these.map(|one| PollFd::from_borrowed_fd(one.as_fd(), PollFlags::IN));
    match poll(&mut watched, Some(&timespec(time)?)) {
        Err(Errno::INTR) => Ok([false; N]),
        polled => {
            polled?;
            Ok(watched.map(|one| !one.revents().is_empty()))
        }
    }
}

fn timespec(time: Duration) -> Result<Timespec> {
    Ok(Timespec { tv_sec: i64::try_from(time.as_secs())?, tv_nsec: time.subsec_nanos().into() })
}
