//! The line to the guest's agent: a port of its own, so that kernel messages never mix with what commands print. A
//! call sends one command and gets its output and exit code, or says why it could not.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::patience::Deadline;

/// A connection to one agent.
pub(crate) struct Channel {
    socket: UnixStream,
    calls: u32,
}

/// A command that ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit code; 128 and more for a signal, as shells say it.
    pub code: i32,
    /// What it wrote to standard output and standard error, without the last line's end.
    pub output: String,
}

/// Why a call has no answer, with what had been printed until then.
pub(crate) enum Lost {
    Deadline(String),
    /// The other end is gone: the machine stopped.
    Closed(String),
}

/// Before the marker that ends a command's output: a byte no text contains.
const SEPARATOR: u8 = 0x1e;
/// A command is a line that the guest's shell keeps in memory, a byte at a time.
const COMMAND_MAX: usize = 32 * 1024;

impl Channel {
    /// The connection that a listener has.
    pub(crate) fn accept(at: &Path, listener: &UnixListener) -> Result<Channel> {
        let (socket, _) = listener.accept().with_context(|| format!("cannot accept at {}", at.display()))?;
        Ok(Channel { socket, calls: 0 })
    }

    /// Waits for the agent's first sign of life.
    pub(crate) fn ready(&mut self, limit: Duration) -> Result<(), Lost> {
        self.answer("ready", Deadline::after(limit)).map(|_| ())
    }

    /// Runs a command in the guest's shell.
    pub(crate) fn call(&mut self, command: &str, limit: Duration) -> Result<Result<Finished, Lost>> {
        if command.len() > COMMAND_MAX {
            bail!("a guest command of {} bytes is longer than {COMMAND_MAX}", command.len());
        }
        self.calls += 1;
        let nonce = format!("c{}", self.calls);
        let line = format!("{nonce} {}\n", base64(command.as_bytes()));
        if self.socket.write_all(line.as_bytes()).is_err() {
            return Ok(Err(Lost::Closed(String::new())));
        }
        Ok(self.answer(&nonce, Deadline::after(limit)))
    }

    /// Reads until the marker of `nonce`. Calls are one after the other, so nothing follows a marker.
    fn answer(&mut self, nonce: &str, deadline: Deadline) -> Result<Finished, Lost> {
        let mut received = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            if let Some(finished) = parse(&received, nonce) {
                return Ok(finished);
            }
            let left = deadline.left();
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                return Err(Lost::Deadline(text(&received)));
            }
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(Lost::Closed(text(&received))),
                Ok(count) => received.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return Err(Lost::Closed(text(&received))),
            }
        }
    }
}

fn parse(received: &[u8], nonce: &str) -> Option<Finished> {
    let line = received.strip_suffix(b"\n")?;
    let separator = line.iter().rposition(|byte| *byte == SEPARATOR)?;
    let marker = std::str::from_utf8(&line[separator + 1..]).ok()?;
    let (name, code) = marker.split_once(' ')?;
    let code = code.parse().ok()?;
    (name == nonce).then(|| Finished { code, output: text(&line[..separator]) })
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.strip_suffix('\n').unwrap_or(&text).to_owned()
}

/// Carries any command, line breaks and quotes included, in one line.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place > group.len() { '=' } else { char::from(letter) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_every_length() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }

    #[test]
    fn only_the_marker_of_this_call_ends_it() {
        assert!(parse(b"text\n\x1ec1 0", "c1").is_none());
        assert!(parse(b"text\n\x1ec1 0\n", "c2").is_none());
        let finished = parse(b"two\nlines\n\x1ec2 137\n", "c2").expect("finished");
        assert_eq!((finished.code, finished.output.as_str()), (137, "two\nlines"));
    }
}
