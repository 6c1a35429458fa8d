//! Proves that a service manager can open the sockets: the server listens on what it inherits and on
//! nothing else, says when it is ready and when it stops, and leaves the socket's file alone.

use std::os::unix::net::UnixDatagram;

use common::proto::WireError;
use tests::PATIENCE;
use tests::client::Client;
use tests::server::Server;
use tests::tool;
use vm_tests::patience::longest;

/// Opens a Unix and a TCP socket as descriptors 3 and 4, as systemd does, and becomes the server.
const MANAGER: &str = r#"
import os, socket, sys
unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
unix.bind(sys.argv[1])
tcp.bind(('127.0.0.1', 0))
for wanted, given in ((10, unix), (11, tcp)):
    given.listen()
    os.dup2(given.fileno(), wanted)
os.dup2(10, 3)
os.dup2(11, 4)
os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()), NOTIFY_SOCKET=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"#;

#[test]
fn sockets_are_inherited_and_readiness_is_told() {
    let Some(python) = tool::find("python3", "python3") else { return };
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (socket, notify) = (dir.path().join("nbd.sock"), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&notify).expect("a socket can be made");
    manager.set_read_timeout(Some(longest(PATIENCE))).expect("a time limit can be set");
    let hear = || {
        let mut message = [0; 256];
        let len = manager.recv(&mut message).expect("the server tells");
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    let words = [python.as_os_str(), "-c".as_ref(), MANAGER.as_ref(), socket.as_os_str(), notify.as_os_str()];
    let server = Server::builder().under(words).export("memory:1M").inheriting(2).start();
    assert_eq!(hear(), "READY=1");
    assert_eq!(server.endpoints().len(), 2);
    for endpoint in server.endpoints() {
        assert_eq!(Client::connect(endpoint).flush(), WireError::OK);
    }
    let exit = server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert_eq!(hear(), "STOPPING=1");
    assert!(socket.exists(), "the file belongs to whoever made it");
}
