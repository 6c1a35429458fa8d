//! What commands print. A reader that has gone is a quiet end: the command has done its work, and its exit code says so.
//! A full disk is an error. Nothing panics.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Time that the last lines of a process have to be taken.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a pipe takes at once if it takes anything (`PIPE_BUF`).
const AT_ONCE_MAX: usize = 4096;

/// Prints on standard output.
///
/// # Errors
/// Where it cannot be written, but not because nobody reads it any more.
pub fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    quiet(write_out(text.as_ref()))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write to standard output: {error}")))
}

/// A reader that has gone is no error.
///
/// # Errors
/// All others.
pub fn quiet(printed: io::Result<()>) -> io::Result<()> {
    match printed {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The end of a process that was asked for help, or got what it does not understand: `printed` is what came of saying so,
/// `code` what it ends with, and `trouble` what it ends with where nobody could be told.
pub fn help(program: &str, printed: io::Result<()>, code: i32, trouble: u8) -> ExitCode {
    match quiet(printed) {
        Err(error) if code == 0 => {
            complain(program, format_args!("cannot write: {error}"));
            ExitCode::from(trouble)
        }
        _ => ExitCode::from(u8::try_from(code).unwrap_or(trouble)),
    }
}

/// Prints a line on standard output if it is taken at once: for a server, which waits for nobody.
///
/// # Errors
/// Where it is not taken, but not because nobody reads it any more.
pub fn announce(line: &str) -> io::Result<()> {
    if !takes(io::stdout(), line.len(), Duration::ZERO) {
        return Err(io::Error::new(ErrorKind::WouldBlock, "nobody reads it"));
    }
    quiet(write_out(line.as_bytes()))
}

/// Says a last word on standard error, as `program: error`, if it is taken soon.
pub fn complain(program: &str, error: impl std::fmt::Display) {
    say(&format!("{program}: {error}\n"), PATIENCE);
}

/// Prints on standard error what nothing depends on, if it is taken at once.
pub fn hint(text: &str) {
    say(text, Duration::ZERO);
}

fn say(text: &str, patience: Duration) {
    for part in text.as_bytes().chunks(AT_ONCE_MAX) {
        if takes(io::stderr(), part.len(), patience) {
            // There is nobody left to be told.
            let _ = io::stderr().write_all(part);
        }
    }
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Whether something takes so many bytes within so long.
pub(crate) fn takes(target: impl AsFd, len: usize, patience: Duration) -> bool {
    let mut watched = [PollFd::new(&target, PollFlags::OUT)];
    let time = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
    loop {
        match poll(&mut watched, Some(&time)) {
            Err(Errno::INTR) => {}
            // What cannot be polled cannot block either.
            Err(_) => return true,
            Ok(_) => return len <= AT_ONCE_MAX && !watched[0].revents().is_empty(),
        }
    }
}
