//! Work that may hang in the kernel, done on a thread of its own so that the caller need not.
//!
//! Opening, reading or flushing a device whose server is gone sleeps where no signal reaches. The
//! thread is left behind when time is up; it ends when the device is disconnected.

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
