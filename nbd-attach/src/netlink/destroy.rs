//! Ending a TCP connection that belongs to somebody else, by sock_diag(7): for one that only the kernel's driver has,
//! and whose server hangs, there is no other way.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP, NLM_F_ACK, NLM_F_REQUEST};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// `SOCK_DESTROY` in `include/uapi/linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// `struct nlmsghdr` and `struct inet_diag_req_v2` in `include/uapi/linux/inet_diag.h`.
const LENGTH: usize = 16 + 56;
/// Where in an answer of type `NLMSG_ERROR` the error number is.
const ERROR: std::ops::Range<usize> = 16..20;

/// Ends the connection with these two ends, one of which is on this machine, in this network namespace.
///
/// # Errors
/// There is none, or the kernel cannot do it (`CONFIG_INET_DIAG_DESTROY`).
pub fn destroy(local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.send(&request(local, peer), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let error = answer.get(ERROR).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) }
}

fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let flags = u16::try_from(NLM_F_REQUEST | NLM_F_ACK).unwrap_or_default();
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend(u32::try_from(LENGTH).unwrap_or_default().to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and sender.
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP].map(|number| u8::try_from(number).unwrap_or_default()));
    bytes.extend([0; 2]);
    // In whatever state it is.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(peer.port().to_be_bytes());
    bytes.extend(address(local.ip()));
    bytes.extend(address(peer.ip()));
    // On any interface, whatever its cookie.
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_request_has_the_kernels_layout() {
        let bytes = request("1.2.3.4:258".parse().unwrap(), "[::1]:772".parse().unwrap());
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(bytes[16..18], [2, 6]);
        assert_eq!(bytes[24..32], [1, 2, 3, 4, 1, 2, 3, 4]);
        assert_eq!(bytes[44..60].iter().sum::<u8>(), 1);
    }

    #[test]
    fn somebody_elses_connection_ends_if_we_may() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        match destroy(ours.local_addr().unwrap(), ours.peer_addr().unwrap()) {
            Ok(()) => assert_eq!(ours.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted),
            // Not every machine has it, and not everybody may.
            Err(error) => assert!(
                [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported, io::ErrorKind::NotFound]
                    .contains(&error.kind()),
                "{error}"
            ),
        }
    }
}
