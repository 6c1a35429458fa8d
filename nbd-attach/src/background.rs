//! `--background`: a keeper that lives on when the command has returned. The command starts itself again, waits until that
//! process keeps the device, and ends as it would have ended.

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Set for the process that is to stay.
const MARK: &str = "NBD_ATTACH_IN_BACKGROUND";
/// Where the system's log listens.
const SYSLOG: &str = "/dev/log";
/// Facility daemon, severity informational, syslog(3).
const PRIORITY: u8 = 3 << 3 | 6;

static DETACHED: OnceLock<Option<UnixDatagram>> = OnceLock::new();

/// Whether this process is the one that stays.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the same command again and waits until it is ready. Gives what to exit with.
///
/// # Errors
/// It cannot be started.
pub fn start(words: impl Iterator<Item = OsString>) -> io::Result<i32> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words).env(MARK, "1").stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut child = command.spawn()?;
    // Our copy of its end would keep us from seeing that it has closed its own.
    drop(command);
    let mut ready = [0];
    let mut ours = ours;
    match ours.read(&mut ready) {
        Ok(1) => Ok(0),
        _ => Ok(child.wait()?.code().unwrap_or(1)),
    }
}

/// Whether a command waits for this process, and shows what it says.
#[must_use]
pub fn is_waited_for() -> bool {
    is_inside() && DETACHED.get().is_none()
}

/// Leaves the terminal and the session of whoever started the command.
pub fn leave_session() {
    if is_inside()
        && let Err(error) = nix::unistd::setsid()
    {
        tracing::debug!("the session stays: {error}");
    }
}

/// Lets the command that waits end, and says nothing any more where it said everything.
///
/// # Errors
/// There is no /dev/null.
pub fn ready() -> io::Result<()> {
    if !is_inside() || DETACHED.get().is_some() {
        return Ok(());
    }
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    // Before the command that waits is told: what reads its output waits for the end of that.
    DETACHED.get_or_init(|| syslog().ok());
    dup2_stdout(&nowhere)?;
    dup2_stderr(&nowhere)?;
    rustix::io::write(rustix::stdio::stdin(), b"!")?;
    Ok(dup2_stdin(&nowhere)?)
}

fn syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Standard error, and the system's log once that has gone.
#[derive(Debug, Default)]
pub struct Errors;

impl Write for Errors {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match DETACHED.get() {
            None => io::stderr().write(line),
            Some(Some(syslog)) => {
                let name = format!("<{PRIORITY}>nbd-attach[{}]: ", std::process::id());
                syslog.send(&[name.as_bytes(), line.trim_ascii_end()].concat()).map(|_| line.len())
            }
            Some(None) => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
