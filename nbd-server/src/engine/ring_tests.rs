//! A ring by itself, driven by hand.

use super::*;
use std::io::{Read, Seek, Write};

/// A ring, or none where the kernel forbids it.
fn ring() -> Option<Rc<Ring>> {
    Ring::new().map(Rc::new).inspect_err(|error| eprintln!("no io_uring here: {error}")).ok()
}

fn poll(operation: &mut Operation) -> Poll<(io::Result<usize>, IoBuf)> {
    Pin::new(operation).poll(&mut Context::from_waker(Waker::noop()))
}

/// Turns until the operation has ended.
fn finish(ring: &Ring, mut operation: Operation) -> (io::Result<usize>, IoBuf) {
    loop {
        if let Poll::Ready(done) = poll(&mut operation) {
            return done;
        }
        ring.turn(Waker::noop()).unwrap();
        std::thread::yield_now();
    }
}

#[test]
fn reads_writes_and_errors_come_back_with_their_buffers() {
    let Some(ring) = ring() else { return };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    let file = Arc::new(file);
    let (read, buf) = finish(&ring, ring.read(file.clone(), IoBuf::zeroed(8), 2, 4));
    assert_eq!((read.unwrap(), &buf[..]), (6, &b"\0\x00456789"[..]));
    let (written, _) = finish(&ring, ring.write(file.clone(), buf, 6, 0));
    assert_eq!(written.unwrap(), 2);
    let (read, buf) = finish(&ring, ring.read(file, IoBuf::zeroed(20), 0, 0));
    assert_eq!((read.unwrap(), &buf[..10]), (10, &b"8923456789"[..]));

    let unreadable = Arc::new(File::options().write(true).open("/dev/null").unwrap());
    let (read, buf) = finish(&ring, ring.read(unreadable, IoBuf::zeroed(3), 0, 0));
    assert_eq!((read.unwrap_err().raw_os_error(), buf.len()), (Some(nix::libc::EBADF), 3));
    assert!(ring.state.borrow().operations.is_empty());
}

#[test]
fn what_nobody_waits_for_any_more_is_finished() {
    let Some(ring) = ring() else { return };
    let mut file = tempfile::tempfile().unwrap();
    let written = Arc::new(file.try_clone().unwrap());
    for part in 0..3_u8 {
        let mut operation = ring.write(written.clone(), IoBuf::from(&[part; 4][..]), 0, u64::from(part) * 4);
        assert!(poll(&mut operation).is_pending());
    }
    assert_eq!(ring.state.borrow().operations.len(), 3);
    ring.turn(Waker::noop()).unwrap();
    // It waits for those under way.
    drop(ring);
    let mut content = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
}

#[test]
fn it_can_do_nothing_else() {
    let Some(ring) = ring() else { return };
    let mut state = ring.state.borrow_mut();
    // Seccomp does not see what goes through a ring.
    state.push(&opcode::Socket::new(1, 1, 0).build()).unwrap();
    state.submit(1).unwrap();
    let answer = state.uring.completion().next().unwrap();
    assert_eq!(answer.result(), -nix::libc::EACCES);
}
