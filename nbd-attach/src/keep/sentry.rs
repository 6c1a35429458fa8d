//! Being told that a socket has died, while the kernel uses it.

use crate::netlink::client::Socket;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io;
use std::thread;
use tokio::sync::mpsc::UnboundedSender;

/// Enough for a call of poll(2): all of it stays in memory.
const STACK: usize = 64 << 10;

/// Sends `place` once the socket is dead. Data that comes and goes wakes nobody: that is asked of
/// poll(2) alone, which is why a thread waits and not a reactor.
pub(super) fn until_dead(place: usize, socket: Socket, deaths: UnboundedSender<usize>) -> io::Result<()> {
    let wait = move || {
        let mut watched = [PollFd::new(&*socket, PollFlags::RDHUP)];
        while poll(&mut watched, None) == Err(Errno::INTR) {}
        let _keeper_may_have_ended = deaths.send(place);
    };
    thread::Builder::new().name(format!("sentry-{place}")).stack_size(STACK).spawn(wait).map(drop)
}
