//! The driver's bare error codes, worded for a person.
//!
//! `drivers/block/nbd.c` sends no explanation over netlink, at most a line in the kernel log, so
//! what each code can mean for each command is written down here.

use super::message::Command;
use crate::device::Index;
use nix::errno::Errno;
use std::fmt;

/// The kernel answered a command with an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// What was asked.
    pub command: Command,
    /// Of which device; none when the kernel was to choose one.
    pub index: Option<Index>,
    /// What it said.
    pub errno: Errno,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.index.map_or_else(|| "any device".to_owned(), |index| index.to_string());
        match self.command {
            Command::CONNECT => write!(f, "the kernel would not attach {device}: ")?,
            Command::DISCONNECT => write!(f, "the kernel would not detach {device}: ")?,
            Command::RECONFIGURE => write!(f, "the kernel would not change {device}: ")?,
            _ => write!(f, "the kernel would not tell about its nbd devices: ")?,
        }
        f.write_str(&self.reason())
    }
}

impl Refusal {
    fn reason(&self) -> String {
        match (self.command, self.errno) {
            (_, Errno::EPERM | Errno::EACCES) => {
                "not permitted; this needs root (CAP_SYS_ADMIN in the first user namespace)".into()
            }
            (_, Errno::ENOMEM) => "the kernel is out of memory".into(),
            (_, Errno::ENOENT) => "the nbd module went away; load it with `modprobe nbd`".into(),
            (Command::CONNECT, errno) => connect_reason(errno),
            (Command::DISCONNECT, Errno::EINVAL) => {
                "there is no such device, or it is going down already".into()
            }
            (Command::RECONFIGURE, Errno::EINVAL) => {
                "it is not attached any more, or by somebody else (its backend identifier differs)".into()
            }
            (_, errno) => bare(errno),
        }
    }
}

fn connect_reason(errno: Errno) -> String {
    match errno {
        Errno::EBUSY => "it is in use: attached already, or some program has it open".into(),
        Errno::EINVAL => "the device is just going away, its number is beyond what the nbd module allows \
            (max_part), or the socket is neither TCP nor a Unix stream (`dmesg` may name the cause)"
            .into(),
        Errno::EEXIST => "somebody else created it at the same moment; try again".into(),
        Errno::ENODEV | Errno::ENXIO => "there is no such device and the kernel cannot make one".into(),
        Errno::EBADF | Errno::ENOTSOCK => "the connection was closed before it could be handed over".into(),
        Errno::EPIPE | Errno::ENOTCONN => "the server closed the connection before it was handed over".into(),
        errno => bare(errno),
    }
}

fn bare(errno: Errno) -> String {
    format!("{} ({errno:?}; `dmesg` may tell more)", errno.desc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(command: Command, errno: Errno) -> String {
        Refusal { command, index: Index::new(3).ok(), errno }.to_string()
    }

    #[test]
    fn every_code_of_the_driver_says_what_to_do() {
        let all = [Command::CONNECT, Command::DISCONNECT, Command::RECONFIGURE, Command::STATUS];
        for command in all {
            assert!(said(command, Errno::EPERM).contains("needs root"));
            assert!(said(command, Errno::ENOENT).contains("modprobe nbd"));
        }
        assert!(said(Command::CONNECT, Errno::EBUSY).contains("/dev/nbd3: it is in use"));
        assert!(said(Command::CONNECT, Errno::EINVAL).contains("going away"));
        assert!(said(Command::CONNECT, Errno::EBADF).contains("closed"));
        assert!(said(Command::DISCONNECT, Errno::EINVAL).contains("no such device"));
        assert!(said(Command::RECONFIGURE, Errno::EINVAL).contains("somebody else"));
    }

    #[test]
    fn an_unknown_code_keeps_its_name() {
        assert!(said(Command::CONNECT, Errno::EDOM).contains("EDOM"));
    }

    #[test]
    fn without_an_index_any_device_was_meant() {
        let refusal = Refusal { command: Command::CONNECT, index: None, errno: Errno::EPERM };
        assert!(refusal.to_string().starts_with("the kernel would not attach any device"));
    }
}
