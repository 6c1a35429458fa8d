//! Signals: those that ask the tool to stop are caught, so that a half-made device is taken back first; SIGHUP asks a
//! keeper to read again what may have changed.

use std::fs;
use std::future::pending;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals, once caught no longer deadly.
#[derive(Debug)]
pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
    /// None where it is ignored, as nohup(1) has it: then it stays ignored.
    hang_up: Option<Signal>,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// To end, whatever is being done; the signal's name.
    End(&'static str),
    /// To end if nothing depends on it; likewise.
    Please(&'static str),
    /// To read files and look names up again.
    Reread,
}

impl Interrupt {
    /// Starts catching.
    ///
    /// # Errors
    /// The operating system would not.
    pub fn catch() -> io::Result<Interrupt> {
        let ignored = ignores_hang_up(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        Ok(Interrupt {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if ignored { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for one of them.
    pub async fn caught(&mut self) -> Caught {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Caught::End("SIGINT"),
            _ = self.terminate.recv() => Caught::Please("SIGTERM"),
            _ = hang_up => Caught::Reread,
        }
    }

    /// Waits for one that ends what has nothing to read again yet: without a terminal it is given up, too.
    pub async fn ended(&mut self) -> &'static str {
        match self.caught().await {
            Caught::End(signal) | Caught::Please(signal) => signal,
            Caught::Reread => "SIGHUP",
        }
    }
}

/// Whether the process was started with SIGHUP ignored, proc_pid_status(5).
fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (nix::libc::SIGHUP - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_status_file() {
        assert!(ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hang_up("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hang_up(""));
    }
}
