//! Every way in which attaching can fail, each a sentence.

use super::claim::ClaimError;
use super::existing::ExistingError;
use super::geometry::GeometryError;
use super::settle::SettleError;
use super::undo::UndoError;
use crate::device::Index;
use crate::driver::DriverError;
use crate::netlink::client::NetlinkError;
use crate::opener::OpenError;
use crate::same::Difference;
use std::io;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No driver, or no right to use it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No connection.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The connections do not lead to the same thing.
    #[error("connection {number} leads to another export than the first: {difference}")]
    Different {
        /// Counted from 1.
        number: usize,
        /// What differs.
        difference: Difference,
    },
    /// `--require-epoch`.
    #[error(
        "the server has no epoch, which --require-epoch asks for: it could lose writes, and nobody would notice"
    )]
    Epochless,
    /// The id is taken.
    #[error(transparent)]
    Existing(#[from] ExistingError),
    /// No device can look like that.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The driver would not.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The device is no good.
    #[error("{device} was detached again: {error}")]
    Settle {
        /// What it was.
        device: Index,
        /// What was wrong.
        error: SettleError,
    },
    /// Every device found believed too much of its server.
    #[error("the nbd devices keep limits of earlier servers; detach everything and reload the nbd module")]
    Stale,
    /// Ctrl-C and its kin.
    #[error("interrupted by {0}; nothing stays attached")]
    Interrupted(&'static str),
    /// The result could not be printed.
    #[error("{device} was detached again, because its name could not be printed: {error}")]
    Print {
        /// What it was.
        device: Index,
        /// Why.
        error: io::Error,
    },
    /// Worse: something is left.
    #[error("{cause}; and {undo}")]
    Undo {
        /// Why it had to be undone.
        cause: Box<AttachError>,
        /// Why it could not be.
        undo: UndoError,
    },
    /// The operating system failed us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AttachError {
    /// Whether another device might have done.
    pub(super) fn is_about_choice(&self) -> bool {
        matches!(
            self,
            AttachError::Claim(ClaimError::Taken { .. } | ClaimError::Netlink(NetlinkError::Refused(_)))
        )
    }
}
