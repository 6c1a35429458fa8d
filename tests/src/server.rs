//! The real `nbd-server` as a child process.
//!
//! [`Server::builder`] says what to serve and where; [`Builder::start`] returns once the binary
//! has printed where it listens. Dropping a [`Server`] kills it, and if the test is failing its
//! log is printed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use common::uri::{Transport, Uri};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vm_tests::guest;

pub use crate::endpoint::{Endpoint, Trust};
use crate::pki::Authority;
use crate::wait_for;

/// What to start.
#[derive(Default)]
pub struct Builder {
    wrap: Vec<OsString>,
    args: Vec<OsString>,
    exports: Vec<OsString>,
    socket: Option<PathBuf>,
    tcp: bool,
    unix: bool,
    /// Listeners that a configuration file or whoever starts the server brings.
    listeners: usize,
}

impl Builder {
    /// Serves this: `[NAME=]SPEC`.
    #[must_use]
    pub fn export(mut self, spec: impl Into<OsString>) -> Builder {
        self.exports.push(spec.into());
        self
    }

    /// Listens on a TCP port of the loopback that the system chooses.
    #[must_use]
    pub fn tcp(mut self) -> Builder {
        self.tcp = true;
        self
    }

    /// Listens on a Unix socket of its own.
    #[must_use]
    pub fn unix(mut self) -> Builder {
        self.unix = true;
        self
    }

    /// Listens on this Unix socket.
    #[must_use]
    pub fn unix_at(mut self, path: &Path) -> Builder {
        self.socket = Some(path.to_owned());
        self
    }

    /// More words for the command line.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Builder {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Offers TLS with a certificate of `authority`.
    #[must_use]
    pub fn tls(mut self, authority: &Authority) -> Builder {
        let (cert, key) = authority.server();
        self.args.extend(["--tls-cert".into(), cert.into(), "--tls-key".into(), key.into()]);
        self
    }

    /// Runs the server under another command that keeps its process id (`exec`, `strace -D`).
    #[must_use]
    pub fn under<S: Into<OsString>>(mut self, command: impl IntoIterator<Item = S>) -> Builder {
        self.wrap.extend(command.into_iter().map(Into::into));
        self
    }

    /// Expects so many listeners that the command it runs under opens.
    #[must_use]
    pub fn inheriting(mut self, listeners: usize) -> Builder {
        self.listeners = listeners;
        self
    }

    /// Runs by a configuration file that says where to listen, so many times.
    #[must_use]
    pub fn config(mut self, file: &Path, listeners: usize) -> Builder {
        self.args.extend(["--config".into(), file.into()]);
        self.listeners = listeners;
        self
    }

    /// Starts it and waits until it says where it listens.
    ///
    /// # Panics
    /// When it ends instead.
    #[must_use]
    pub fn start(self) -> Server {
        let typed = usize::from(self.tcp) + usize::from(self.unix) + usize::from(self.socket.is_some());
        let listeners = typed + self.listeners;
        let mut server = self.spawn();
        server.endpoints = wait_for("the server to listen", || {
            if let Some(status) = server.child.try_wait().expect("a child can be asked for its status") {
                panic!("the server ended with {status} instead of listening:\n{}", server.log());
            }
            let said = fs::read_to_string(server.stdout()).expect("standard output is a file");
            (said.lines().count() >= listeners && said.ends_with('\n'))
                .then(|| said.lines().map(endpoint).collect())
        });
        server
    }

    /// Starts what ought to refuse, and returns how it did.
    #[must_use]
    pub fn refused(self) -> Exit {
        self.spawn().wait()
    }

    fn spawn(self) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let socket = self.socket.or_else(|| self.unix.then(|| dir.path().join("nbd.sock")));
        let mut words = self.wrap;
        words.push(server_tool().into());
        if let Some(socket) = socket {
            words.extend(["--unix".into(), socket.into()]);
        }
        if self.tcp {
            words.extend(["--listen".into(), "127.0.0.1:0".into()]);
        }
        words.extend(self.args);
        words.extend(self.exports);
        let create = |name| File::create(dir.path().join(name)).expect("a file can be made");
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(create(STDOUT))
            .stderr(create(STDERR))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", words[0].display()));
        Server { child, dir, endpoints: Vec::new() }
    }
}

/// Lines of the log that a failing test prints.
const LINES_SHOWN: usize = 40;
const STDOUT: &str = "stdout";
const STDERR: &str = "log";

fn endpoint(line: &str) -> Endpoint {
    let uri: Uri = line.parse().unwrap_or_else(|error| panic!("{line:?} is no NBD URI: {error}"));
    match uri.transport {
        Transport::Unix { path } => Endpoint::Unix(path),
        Transport::Tcp { host, port } => {
            Endpoint::Tcp(SocketAddr::new(host.parse().expect("the server prints an address"), port))
        }
        Transport::Vsock { .. } => panic!("nobody asked for {line}"),
    }
}

/// A running server.
pub struct Server {
    child: Child,
    dir: TempDir,
    endpoints: Vec<Endpoint>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub log: String,
}

impl Server {
    /// A server of nothing that listens nowhere, to be told more.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A server of one export on one Unix socket.
    #[must_use]
    pub fn of(spec: impl Into<OsString>) -> Server {
        Server::builder().export(spec).unix().start()
    }

    /// Everywhere it listens.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The first place where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoints[0]
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the server is a living child");
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join(STDERR)).expect("the log is a file")
    }

    /// Waits until it has logged a line that holds `text`, and returns the line.
    #[must_use]
    pub fn logged(&self, text: &str) -> String {
        wait_for(&format!("{text:?} in the log"), || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// The number behind `name` in the kernel's status of the process, for example `VmHWM` in
    /// KiB, or `Threads`.
    #[must_use]
    pub fn status(&self, name: &str) -> u64 {
        status(self.pid(), name)
    }

    /// Ticks of processor time it has used, in user and kernel mode (a hundred per second).
    #[must_use]
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it lives");
        let after_name = stat.rsplit_once(')').expect("the name is in brackets").1;
        let field = |number: usize| after_name.split_whitespace().nth(number).expect("it has many fields");
        // Fields 14 and 15 of the whole, of which two stand before the bracket.
        [11, 12].into_iter().map(|n| field(n).parse::<u64>().expect("it is a number")).sum()
    }

    /// SIGTERM, then waits for the end.
    #[must_use]
    pub fn terminate(self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// SIGKILL, then waits for the end.
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
        let _exit = self.wait();
    }

    /// Waits for the end.
    #[must_use]
    pub fn wait(mut self) -> Exit {
        let status = wait_for("the server to end", || self.child.try_wait().expect("it is our child"));
        let stdout = fs::read_to_string(self.stdout()).expect("standard output is a file");
        Exit { code: status.code(), stdout, log: self.log() }
    }

    fn stdout(&self) -> PathBuf {
        self.dir.path().join(STDOUT)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            eprintln!("--- end of the server's log ---\n{}\n---", last.join("\n"));
        }
        let _may_have_ended = self.child.kill();
        let _may_be_reaped = self.child.wait();
    }
}

/// The number behind `name` in the kernel's status of a process.
pub(crate) fn status(process: Pid, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).expect("the kernel tells it");
    number.parse().expect("it is a number")
}

/// The server's binary: `NBD_SERVER_BIN` if that is set, else it is built, once per process.
pub fn server_tool() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| std::env::var_os("NBD_SERVER_BIN").map_or_else(|| build("nbd-server"), PathBuf::from))
}

/// The attach tool's binary, which is built, once per process.
pub fn attach_tool() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("nbd-attach"))
}

/// Builds a package's binary with the profile of the running test and asks cargo where it is.
pub(crate) fn build(package: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let mut cargo = guest::cargo();
    cargo.args(["build", "--quiet", "--message-format=json", "--package", package, "--bin", package]);
    if own.components().any(|part| part.as_os_str() == "release") {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo can be started");
    assert!(output.status.success(), "cargo cannot build {package}");
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the executable")
}
