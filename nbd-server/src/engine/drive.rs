//! A worker's ring in the reactor of its runtime.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Ring;

/// Submits what the devices ask of the ring, and wakes them when the kernel has answered, for ever.
///
/// # Errors
/// The ring is broken; what it was given is never answered.
#[expect(unsafe_code, reason = "the reactor is given a descriptor")]
pub async fn drive(ring: Rc<Ring>) -> io::Result<Infallible> {
    // SAFETY: a ring keeps its one descriptor open for as long as it lives.
    let answers = unsafe { AsyncFd::register_with_interest(ring.clone(), Interest::READABLE) }?;
    poll_fn(|cx| {
        while let Poll::Ready(mut ready) = answers.poll_read_ready(cx)? {
            ready.clear_ready();
        }
        ring.turn(cx.waker())?;
        Poll::Pending
    })
    .await
}
