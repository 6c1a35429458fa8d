//! The real `nbd-crash`: run to its end, or started as a recorder or a server until it is told to end.

pub mod subjects;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::build;
use crate::tool::{self, Done};

/// The binary, which is built, once per process.
pub fn crash_tool() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("nbd-crash"))
}

/// Runs it to its end.
///
/// # Panics
/// When it does not end.
pub fn crash(args: &[&str]) -> Done {
    tool::run(crash_tool(), args)
}

/// One that serves until it is told to end, and is killed when dropped.
pub struct Serving {
    child: Child,
    uri: String,
}

impl Serving {
    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(args: &[&str]) -> Serving {
        let mut child = Command::new(crash_tool())
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start nbd-crash: {error}"));
        let mut line = String::new();
        let out = child.stdout.as_mut().expect("it was piped");
        BufReader::new(out).read_line(&mut line).expect("it prints text");
        assert!(line.starts_with("nbd"), "nbd-crash {args:?} printed {line:?}");
        Serving { child, uri: line.trim_end().to_owned() }
    }

    /// Where it serves.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
