//! External tools: found, run with a deadline, and when missing, skipped where everybody sees it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use vm_tests::{Deadline, wait};

/// How often to ask whether it was enough.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a tool may run.
const PATIENCE: Duration = Duration::from_secs(120);

/// The tool's path, or `None` after saying aloud that the running test is skipped. With
/// `NBD_TESTS_STRICT=1` a missing tool is a failure.
#[must_use]
pub fn find(tool: &str, package: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(&path()).map(|dir| dir.join(tool)).find(|it| it.is_file());
    if found.is_none() {
        skip(&format!("needs {tool} (package {package}); run cargo xtask install"));
    }
    found
}

/// The system's own directories first: `nbdsh` is a script that runs the first `python3` it finds,
/// and only the system's has the module it needs.
fn path() -> OsString {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].into_iter().map(PathBuf::from);
    std::env::join_paths(system.chain(std::env::split_paths(&own))).expect("PATH was split at its colons")
}

/// Says aloud that the running test is skipped for want of something that can be had.
///
/// # Panics
/// With `NBD_TESTS_STRICT=1`.
pub fn skip(reason: &str) {
    let strict = std::env::var_os("NBD_TESTS_STRICT").is_some_and(|strict| strict == "1");
    assert!(!strict, "skipping is not allowed (NBD_TESTS_STRICT=1): {reason}");
    excuse(reason);
}

/// Says aloud that the running test is skipped for want of something that no installation brings.
pub fn excuse(reason: &str) {
    let thread = thread::current();
    let line = format!("SKIP {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Not `eprintln`, which the test harness captures.
    let _nobody_may_read = std::io::stderr().write_all(line.as_bytes());
}

/// How a tool ended.
#[derive(Debug)]
pub struct Done {
    /// How.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a tool to its end, whatever that is.
///
/// # Panics
/// When it cannot be started or does not end.
pub fn run<S: AsRef<OsStr>>(tool: &Path, args: &[S]) -> Done {
    let file = || tempfile::tempfile().expect("a temporary file can be made");
    let (mut stdout, mut stderr) = (file(), file());
    let hand = |file: &File| Stdio::from(file.try_clone().expect("a descriptor can be copied"));
    let mut child = Command::new(tool)
        .args(args)
        .env("PATH", path())
        .stdin(Stdio::null())
        .stdout(hand(&stdout))
        .stderr(hand(&stderr))
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", tool.display()));
    let status = end_of(&mut child, PATIENCE, || false);
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    let Some(status) = status else {
        panic!("{} did not end within {PATIENCE:?}:\n{stdout}\n{stderr}", tool.display());
    };
    Done { status, stdout, stderr }
}

/// Waits for a child to end. One that has not within `patience`, or whose end `enough` does not
/// want to see, is killed.
///
/// # Panics
/// When the child was waited for before.
pub fn end_of(child: &mut Child, patience: Duration, enough: impl Fn() -> bool) -> Option<ExitStatus> {
    let (end, until) = (wait::end_of(child).expect("it is our child"), Deadline::after(patience));
    loop {
        if wait::readable_within([&end], LOOK_EVERY.min(until.left()))
            .expect("a descriptor can be waited for")
            == [true]
        {
            return Some(child.wait().expect("it is our child"));
        }
        if until.has_passed() || enough() {
            let _may_have_ended = child.kill();
            let _killed = child.wait();
            return None;
        }
    }
}

/// Runs a tool that must succeed; returns its standard output.
///
/// # Panics
/// When it fails.
pub fn succeed<S: AsRef<OsStr> + std::fmt::Debug>(tool: &Path, args: &[S]) -> String {
    let done = run(tool, args);
    let tool = tool.display();
    assert!(done.status.success(), "{tool} {args:?}: {}\n{}\n{}", done.status, done.stdout, done.stderr);
    done.stdout
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a temporary file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}
