//! Work that may hang in the kernel, done on a thread of its own so that the caller need not.
//!
//! Opening, reading or flushing a device whose server is gone sleeps where no signal reaches. The
//! thread is left behind when time is up; it ends when the device is disconnected.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::oneshot;

/// The work was not done in time; its thread still waits in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs_f32())]
pub struct TooSlow(pub Duration);

/// Does `work` on a thread of its own and waits for it, but not longer than `patience`.
pub async fn bounded<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TooSlow> {
    let (done, wait) = oneshot::channel();
    std::thread::spawn(move || {
        // Whoever waited may have given up.
        let _ = done.send(work());
    });
    match tokio::time::timeout(patience, wait).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) | Err(_) => Err(TooSlow(patience)),
    }
}

/// The commands by which this program runs itself.
pub const HELPERS: [&str; 5] = ["disconnect", "flush", "netlink", "probe", "release"];

/// This program again, to do what may hang: a process cannot end while one of its threads waits in the kernel, but
/// it can leave another process behind.
#[derive(Debug)]
pub struct Child(Command);

impl Child {
    /// With these arguments.
    pub fn of_ours(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Child {
        // By its own name, which users of the device are listed by; by the link where that is gone.
        let named = std::env::current_exe().ok().filter(|path| path.exists());
        let mut child = Command::new(named.unwrap_or_else(|| "/proc/self/exe".into()));
        child.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Child(child)
    }

    /// With an open file, which is the child's alone from its start on.
    #[must_use]
    pub fn holding(mut self, file: File) -> Child {
        self.0.stdin(file);
        self
    }

    /// Starts it and leaves it to itself. It is in no terminal's group of processes.
    ///
    /// # Errors
    /// It could not be started.
    pub fn left_alone(mut self) -> io::Result<()> {
        self.0.process_group(0).spawn().map(drop)
    }

    /// Runs it to its end. Its exit code is an error number.
    ///
    /// # Errors
    /// It could not be started, or what it did failed.
    pub fn finished(mut self) -> io::Result<()> {
        let mut running = self.0.spawn()?;
        // What the child was given is ours as well, until now.
        drop(self.0);
        match running.wait()?.code() {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::other("the process that was to do it was killed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn quick_work_is_returned_and_endless_work_left_behind() {
        assert_eq!(bounded(Duration::from_secs(10), || 7).await, Ok(7));
        let patience = Duration::from_millis(50);
        let (_keep, block) = std::sync::mpsc::channel::<()>();
        assert_eq!(bounded(patience, move || block.recv().is_ok()).await, Err(TooSlow(patience)));
    }
}
