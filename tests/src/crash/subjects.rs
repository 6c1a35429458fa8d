//! Servers under random requests of four connections: others between two recorders, judged by what they promised in
//! front; and ours, killed in the middle and judged by what it has left.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{Serving, crash, crash_tool};
use crate::disk::Disk;
use crate::server::Server;
use crate::tool::Done;
use crate::wait_until;

/// Connections that take turns.
const CONNECTIONS: &str = "4";
/// Requests that our server is killed among, and how much of them is recorded by then.
const MANY: usize = 20_000;
const RECORDED: u64 = 2 << 20;

/// A server that keeps what it is given in an export of another.
pub struct Subject {
    /// What it is called, with what matters of its options.
    pub name: &'static str,
    /// Its program, and the package that has it.
    pub program: (&'static str, &'static str),
    /// Whether it promises what the protocol wants.
    pub is_honest: bool,
    /// Its words, by the socket it listens at and that of the other.
    words: fn(&str, &str) -> Vec<String>,
}

/// Who is judged.
pub const SUBJECTS: [Subject; 3] = [
    Subject {
        name: "nbdkit",
        program: ("nbdkit", "nbdkit"),
        is_honest: true,
        words: |at, other| {
            let words = ["-f", "-U", at, "nbd", &format!("socket={other}"), "shared=true"];
            words.map(str::to_owned).to_vec()
        },
    },
    Subject {
        name: "qemu-nbd --cache=writeback",
        program: ("qemu-nbd", "qemu-utils"),
        is_honest: true,
        words: |at, other| qemu_nbd("writeback", at, other),
    },
    Subject {
        name: "qemu-nbd --cache=unsafe",
        program: ("qemu-nbd", "qemu-utils"),
        is_honest: false,
        words: |at, other| qemu_nbd("unsafe", at, other),
    },
];

fn qemu_nbd(cache: &str, at: &str, other: &str) -> Vec<String> {
    let other = unix(other);
    ["-t", "-e", "8", "-f", "raw", "--cache", cache, "-k", at, &other].map(str::to_owned).to_vec()
}

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts a server between two recorders, sends it random requests, and explores the states of its storage by what it
/// promised; `how` is more for `nbd-crash explore`.
///
/// # Panics
/// When one of them does not do what it is asked.
#[must_use]
pub fn between(program: &Path, subject: &Subject, requests: usize, seed: u64, how: &[&str]) -> Done {
    let directory = directory();
    let at = |name: &str| path(&directory, name);
    let storage = Server::builder().export("memory:1M").unix().start();
    let recorder = |to: &str, listen: &str, log: &str| {
        Serving::start(&["record", "--to", to, "--listen", &at(listen), "--log", &at(log)])
    };
    let back = recorder(&storage.endpoint().uri(""), "back", "back.nbdrec");
    let mut middle = Command::new(program);
    middle.args((subject.words)(&at("middle"), &at("back"))).stderr(Stdio::null());
    let middle =
        Killed(middle.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", subject.name)));
    let socket = at("middle");
    wait_until("the server to listen", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let front = recorder(&unix(&socket), "front", "front.nbdrec");
    let text = random_requests(&directory, requests, seed);
    let sent = crash(&["workload", &text, "--nbd", front.uri(), "--connections", CONNECTIONS]);
    assert!(sent.status.success(), "{}", sent.stderr);
    assert!(front.terminate().success(), "the recording in front has no end");
    drop(middle);
    assert!(back.terminate().success(), "the recording behind has no end");
    let (back, front) = (at("back.nbdrec"), at("front.nbdrec"));
    crash(&[&["explore", &back, "--front", &front][..], how].concat())
}

/// Kills our server in a mode among many requests and compares what is left with what it had promised.
///
/// # Panics
/// When it is killed too late, or the recording does not say that it was killed.
#[must_use]
pub fn killed(mode: &str, seed: u64) -> Done {
    let directory = directory();
    let (log, text) = (path(&directory, "log"), random_requests(&directory, MANY, seed));
    let disk = Disk::sparse(1 << 20);
    let server = Server::builder()
        .export(disk.spec())
        .args(&["--durability", mode, "--record", &log, "--dirty-age", "3600"])
        .unix()
        .start();
    let mut client = Command::new(crash_tool());
    client.args(["workload", &text, "--nbd", &server.endpoint().uri(""), "--connections", CONNECTIONS]);
    let mut client = Killed(client.stderr(Stdio::null()).spawn().expect("the binary was built"));
    wait_until("the recording to grow", || fs::metadata(&log).is_ok_and(|it| it.len() > RECORDED));
    server.kill();
    assert!(!client.0.wait().expect("it is our child").success(), "the server was killed too late");
    crash(&["check", &log, "--image", disk.path().to_str().expect("temporary names are text")])
}

/// A file of random requests to an export of at least one MiB; gives its path.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn random_requests(directory: &TempDir, count: usize, seed: u64) -> String {
    let text = path(directory, "requests");
    let generated = crash(&["generate", "--raw", &count.to_string(), "--seed", &seed.to_string()]);
    assert!(generated.status.success(), "{}", generated.stderr);
    fs::write(&text, generated.stdout).expect("a temporary file");
    text
}

fn directory() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

fn path(directory: &TempDir, name: &str) -> String {
    directory.path().join(name).to_str().expect("temporary names are text").to_owned()
}

fn unix(socket: &str) -> String {
    format!("nbd+unix:///?socket={socket}")
}
