//! What a confined process can no longer do, tried out by one: this test starts itself again, and the child
//! confines itself and tells what still works.
//!
//! Skipped where the kernel has neither landlock nor seccomp, which the child says.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nbd_server::confine::{self, Reach, Sandbox};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getppid;

/// In the child's environment: a directory to try things in.
const DIR: &str = "CONFINED_IN";

fn reach(dir: &Path) -> Reach {
    Reach {
        read: vec![dir.join("read")],
        write: vec![dir.join("write"), dir.join("missing")],
        keep: vec![dir.join("keep")],
        sockets: vec![dir.join("sockets")],
    }
}

fn refused<T>(result: io::Result<T>, kind: ErrorKind, what: &str) {
    match result {
        Ok(_) => panic!("{what} still works"),
        Err(error) => assert_eq!(error.kind(), kind, "{what}: {error}"),
    }
}

/// The child's life. In an ordinary run there is nothing to do.
#[test]
fn the_confined_child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let inherited = TcpListener::bind("127.0.0.1:0").expect("not confined yet");
    let before = thread::spawn({
        let (go, wait) = std::sync::mpsc::channel::<()>();
        // Lives until after the system calls are confined.
        std::mem::forget(go);
        move || wait.recv_timeout(std::time::Duration::from_secs(600))
    });
    let mut confined = confine::files(Sandbox::Required, &reach(&dir)).expect("landlock");
    what_is_served_can_be_opened(&dir);
    confined.calls(Sandbox::Required).expect("seccomp");
    drop(before);

    // All of it again, and from another thread.
    thread::spawn({
        let dir = dir.clone();
        move || what_is_served_can_be_opened(&dir)
    })
    .join()
    .expect("a thread can begin, and finds the same");
    let address = inherited.local_addr().expect("it listens");
    refused(TcpStream::connect(address), ErrorKind::Unsupported, "a TCP connection");
    refused(UdpSocket::bind("127.0.0.1:0"), ErrorKind::Unsupported, "UDP");
    refused(Command::new("/bin/true").spawn(), ErrorKind::Unsupported, "running a program");
    refused(UnixDatagram::unbound(), ErrorKind::Unsupported, "talking to other services");
    refused(
        kill(getppid(), Signal::SIGURG).map_err(io::Error::from),
        ErrorKind::Unsupported,
        "signalling others",
    );
    let (waiting, _other) = UnixStream::pair().expect("a pair of sockets");
    waiting.set_nonblocking(true).expect("what a server asks by ioctl(2) reaches the kernel");
    let unread = rustix::io::ioctl_fionread(&waiting).map_err(io::Error::from);
    refused(unread, ErrorKind::Unsupported, "an ioctl that no server needs");
    println!("confined");
}

fn what_is_served_can_be_opened(dir: &Path) {
    assert!(File::open(dir.join("read")).is_ok());
    refused(File::options().write(true).open(dir.join("read")), ErrorKind::PermissionDenied, "writing to it");
    assert!(File::options().read(true).write(true).open(dir.join("write")).is_ok());
    refused(File::open(dir.join("other")), ErrorKind::PermissionDenied, "a neighbour");
    refused(File::create(dir.join("new")), ErrorKind::PermissionDenied, "a new file");
    refused(fs::read("/etc/passwd"), ErrorKind::PermissionDenied, "the list of users");
    // What was not there is not hidden behind a refusal.
    refused(File::open(dir.join("missing")), ErrorKind::NotFound, "a file that is not there");

    let (kept, new) = (dir.join("keep/state"), dir.join("keep/state.new"));
    fs::write(&new, "state").expect("state is kept");
    fs::rename(new, &kept).expect("it is replaced as a whole");
    File::open(dir.join("keep")).and_then(|dir| dir.sync_all()).expect("so that it lasts");
    fs::remove_file(kept).expect("and goes");
    refused(File::create(dir.join("sockets/file")), ErrorKind::PermissionDenied, "a file among the sockets");
}

#[test]
fn a_confined_process_opens_what_is_served_and_runs_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    for file in ["read", "write", "other", "sockets/old"] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().expect("it is in a directory")).expect("it can be made");
        fs::write(path, file).expect("it can be written");
    }
    let this = std::env::current_exe().expect("this program has a path");
    let child = Command::new(this)
        .args(["--exact", "the_confined_child", "--nocapture", "--test-threads", "1"])
        .env(DIR, dir.path())
        .env_remove("NOTIFY_SOCKET")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    let cannot = said.contains("this kernel has no") && std::env::var_os("NBD_TESTS_STRICT").is_none();
    assert!(said.contains("confined\n") || cannot, "{said}");
}

#[test]
fn a_process_is_not_confined_that_was_told_not_to_be() {
    let confined = confine::files(Sandbox::Off, &Reach::default()).and_then(|mut it| it.calls(Sandbox::Off));
    assert!(confined.is_ok() && fs::read("/etc/passwd").is_ok());
}
