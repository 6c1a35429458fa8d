//! Joins a connection of the guest, which QEMU hands over as standard input, to a TCP port of the host. QEMU starts
//! one for each connection. It exists because QEMU leaves Nagle's algorithm on at its end: with an ordinary relay
//! every write of the guest waits 40 ms for a delayed acknowledgement, so this one acknowledges at once.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use rustix::net::sockopt;

fn main() -> io::Result<()> {
    let port =
        std::env::args().nth(1).and_then(|port| port.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let guest = TcpStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    guest.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let back = (server.try_clone()?, guest.try_clone()?);
    let forth = thread::spawn(move || pump(guest, server));
    let outcome = pump(back.0, back.1);
    // The server has closed; what the guest still says would reach nobody.
    drop(forth);
    outcome
}

/// Copies until the end and passes the end on.
fn pump(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        // The kernel forgets this with every acknowledgement.
        sockopt::set_tcp_quickack(&from, true)?;
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(&buffer[..count])?;
    }
}
