//! Proves that sockets are as the kernel needs them, and that failing to connect is said plainly.

use super::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::getsockopt;
use nix::sys::time::TimeValLike;

const PATIENCE: Duration = Duration::from_secs(5);

fn tcp(port: u16) -> Place {
    Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

#[tokio::test]
async fn a_tcp_socket_is_as_the_kernel_needs_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = dial(&tcp(listener.local_addr().unwrap().port()), PATIENCE).await.unwrap();
    let fd = link.into_fd().unwrap();
    assert!(getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
    assert!(getsockopt(&fd, sockopt::KeepAlive).unwrap());
    assert_eq!(getsockopt(&fd, sockopt::ReceiveTimeout).unwrap().num_microseconds(), 0);
    assert_eq!(getsockopt(&fd, sockopt::SendTimeout).unwrap().num_microseconds(), 0);
    let flags = FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
    assert!(flags.contains(FdFlag::FD_CLOEXEC));
}

#[tokio::test]
async fn a_unix_socket_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    let fd = dial(&Place::Unix(path), PATIENCE).await.unwrap().into_fd().unwrap();
    assert_eq!(getsockopt(&fd, sockopt::ReceiveTimeout).unwrap().num_microseconds(), 0);
}

#[tokio::test]
async fn nobody_there_is_said_plainly() {
    let port = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let error = dial(&tcp(port), PATIENCE).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("could not connect to 127.0.0.1:{port}: connection refused (no server is listening there)")
    );
    let error = dial(&Place::Unix("/nonexistent/s".into()), PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("there is no such socket"), "{error}");
    let error = look_up("no such host", 1, PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("could not be resolved"), "{error}");
}

#[tokio::test]
async fn a_full_queue_ends_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let error = dial(&Place::Unix(path), Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, DialError::Deadline { .. }), "{error}");
}
