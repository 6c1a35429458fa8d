//! Not needing the device that is kept.

use nix::sys::mman::{MlockAllFlags, mlockall};
use rustix::process::configure_io_flusher_behavior;

/// Keeps the kernel from taking our memory away, or us: it might need us to write what it takes away. For the same
/// reason, when it makes room for us, it must not write to a device. What is started later inherits this, so it is
/// done first.
pub fn stay_in_memory() {
    if let Err(error) = configure_io_flusher_behavior(true) {
        tracing::debug!("the kernel may write to devices when we need memory: {error}");
    }
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        tracing::warn!(
            "cannot lock our memory: {error}; never put swap or the root file system on the device"
        );
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("cannot ask to be spared when memory runs out: {error}");
    }
}
