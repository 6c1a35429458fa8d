//! What the command exits with, so that scripts need not read sentences.

use crate::attach::AttachError;
use crate::attach::claim::ClaimError;
use crate::attach::existing::ExistingError;
use crate::config::ConfigError;
use crate::detach::DetachError;
use crate::device::DeviceNameError;
use crate::driver::DriverError;
use crate::host::NotAttached;
use crate::info::InfoError;
use crate::negotiate::NegotiateError;
use crate::netlink::client::NetlinkError;
use crate::opener::OpenError;
use crate::same::Difference;
use crate::status::StatusError;
use crate::watch::WatchError;
use nix::errno::Errno;
use std::error::Error;

/// How a command ended. The numbers are a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// For a reason that has no number.
    Failed = 1,
    /// What was typed makes no sense.
    Usage = 2,
    /// There is no such device, or nothing is attached to it.
    NotAttached = 3,
    /// Somebody uses the device, or waits for it to be closed.
    InUse = 4,
    /// No server answers.
    Unreachable = 5,
    /// The server answers, but not with what is wanted.
    Refused = 6,
    /// The server has lost acknowledged writes, or serves another disk.
    LostWrites = 7,
    /// This needs root.
    NotPermitted = 8,
    /// The kernel has no nbd driver here.
    NoDriver = 9,
    /// The id or the device is attached, but otherwise than it was asked for.
    Otherwise = 10,
    /// The keeper was told to end; the device stays attached, and nobody reconnects it.
    Left = 11,
}

/// Shown by `--help`.
pub const TABLE: &str = "\
Exit status:
  0   done
  1   failed, for a reason that has no number here
  2   what was typed makes no sense
  3   not attached
  4   in use
  5   no server answers
  6   the server refuses, or does not serve what is wanted
  7   the server has lost acknowledged writes, or serves another disk
  8   not permitted: this needs root
  9   the kernel has no nbd driver, or it cannot be asked from here
  10  the id or the device is attached otherwise than asked for
  11  the keeper was told to end; the device stays attached";

impl Status {
    /// The number.
    #[must_use]
    pub fn code(self) -> i32 {
        self as i32
    }

    /// How a command that failed with this error ended: the first cause that says so counts.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Status {
        error.chain().find_map(told).unwrap_or(Status::Failed)
    }
}

/// What an error of ours stands for.
fn told(error: &(dyn Error + 'static)) -> Option<Status> {
    let is = |found: bool, status| found.then_some(status);
    None.or_else(|| error.downcast_ref().map(attach))
        .or_else(|| error.downcast_ref().map(detach))
        .or_else(|| error.downcast_ref().map(open))
        .or_else(|| error.downcast_ref().map(netlink))
        .or_else(|| error.downcast_ref().map(driver))
        .or_else(|| error.downcast_ref().map(difference))
        .or_else(|| error.downcast_ref().map(existing))
        .or_else(|| is(error.is::<NotAttached>(), Status::NotAttached))
        .or_else(|| {
            is(matches!(error.downcast_ref(), Some(StatusError::NotAttached(_))), Status::NotAttached)
        })
        .or_else(|| is(matches!(error.downcast_ref(), Some(WatchError::NotAttached(_))), Status::NotAttached))
        .or_else(|| error.downcast_ref().map(info))
        .or_else(|| is(error.is::<ConfigError>() || error.is::<DeviceNameError>(), Status::Usage))
}

fn attach(error: &AttachError) -> Status {
    match error {
        AttachError::Driver(error) => driver(error),
        AttachError::Open(error) => open(error),
        AttachError::Existing(error) => existing(error),
        AttachError::Different { difference: error, .. } => difference(error),
        AttachError::Epochless => Status::Refused,
        AttachError::Geometry(_) | AttachError::Settle { .. } => Status::Refused,
        AttachError::Claim(ClaimError::Taken { .. }) => Status::Otherwise,
        AttachError::Claim(ClaimError::Netlink(error)) => netlink(error),
        AttachError::Undo { cause, .. } => attach(cause),
        _ => Status::Failed,
    }
}

fn existing(error: &ExistingError) -> Status {
    match error {
        ExistingError::Other { .. } | ExistingError::Elsewhere { .. } | ExistingError::Differs { .. } => {
            Status::Otherwise
        }
        ExistingError::Lingering { .. } => Status::InUse,
        ExistingError::Dead { .. } => Status::Unreachable,
        ExistingError::Open { error, .. } => open(error),
        ExistingError::Netlink(error) => netlink(error),
        ExistingError::Busy(_) | ExistingError::Io(_) => Status::Failed,
    }
}

fn detach(error: &DetachError) -> Status {
    match error {
        DetachError::Driver(error) => driver(error),
        DetachError::NotAttached(_) => Status::NotAttached,
        DetachError::InUse { .. } | DetachError::Held(_) | DetachError::Open(_) => Status::InUse,
        DetachError::Foreign { .. } | DetachError::Changed(_) => Status::Otherwise,
        DetachError::Flush { .. } | DetachError::Stuck { .. } => Status::Unreachable,
        DetachError::Netlink(error) => netlink(error),
        DetachError::Io(_) => Status::Failed,
    }
}

fn info(error: &InfoError) -> Status {
    match error {
        InfoError::Open(error) => open(error),
        InfoError::Negotiate(error) => negotiate(error),
        InfoError::Print(_) => Status::Failed,
    }
}

fn open(error: &OpenError) -> Status {
    match error {
        OpenError::Dial(_) | OpenError::Io(_) => Status::Unreachable,
        OpenError::Negotiate(error) => negotiate(error),
        OpenError::Different(error) => difference(error),
        OpenError::Tls(_) => Status::Refused,
    }
}

fn negotiate(error: &NegotiateError) -> Status {
    match error {
        NegotiateError::Client(_) | NegotiateError::Unasked => Status::Refused,
        NegotiateError::Closed | NegotiateError::Io(_) | NegotiateError::Deadline(_) => Status::Unreachable,
    }
}

fn difference(error: &Difference) -> Status {
    match error {
        Difference::Epoch { .. } | Difference::Identity { .. } => Status::LostWrites,
        _ => Status::Refused,
    }
}

fn driver(error: &DriverError) -> Status {
    match error {
        DriverError::Unprivileged => Status::NotPermitted,
        DriverError::Missing(_) => Status::NoDriver,
    }
}

fn netlink(error: &NetlinkError) -> Status {
    match error {
        NetlinkError::NoFamily => Status::NoDriver,
        NetlinkError::Refused(refusal) => match refusal.errno {
            Errno::EPERM | Errno::EACCES => Status::NotPermitted,
            Errno::EBUSY => Status::InUse,
            _ => Status::Failed,
        },
        NetlinkError::Deadline(_) | NetlinkError::Broken(_) => Status::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_below_what_was_said_about_it() {
        let status = |error: anyhow::Error| Status::of(&error.context("while attaching"));
        assert_eq!(status(DriverError::Unprivileged.into()), Status::NotPermitted);
        assert_eq!(status(AttachError::Driver(DriverError::Missing(String::new())).into()), Status::NoDriver);
        assert_eq!(status("/dev/sda".parse::<crate::device::Index>().unwrap_err().into()), Status::Usage);
        assert_eq!(status(anyhow::anyhow!("something else")), Status::Failed);
        let device = crate::device::Index::new(0).unwrap();
        assert_eq!(status(DetachError::Held(device).into()), Status::InUse);
    }

    #[test]
    fn the_table_has_every_number() {
        for number in 0..=Status::Left.code() {
            assert!(
                TABLE.lines().any(|line| line.trim_start().starts_with(&format!("{number} "))),
                "{number}"
            );
        }
    }
}
