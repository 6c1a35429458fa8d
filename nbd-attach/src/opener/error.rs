//! Every way in which there is no connection, and which of several tells most.

use crate::dial::DialError;
use crate::negotiate::NegotiateError;
use crate::same::Difference;
use crate::tls::TlsError;
use std::io;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody there.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No handshake.
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    /// It is another server than it was.
    #[error("not what it was: {0}")]
    Different(#[from] Difference),
    /// Not encrypted.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operating system failed us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl OpenError {
    /// How far it came: what fails late tells more than what fails early.
    fn progress(&self) -> u8 {
        match self {
            OpenError::Dial(DialError::Resolve { .. }) => 0,
            OpenError::Dial(_) | OpenError::Io(_) => 1,
            OpenError::Negotiate(_) | OpenError::Tls(_) => 2,
            OpenError::Different(_) => 3,
        }
    }
}

/// The failure that tells more.
pub(super) fn worse(before: Option<OpenError>, now: OpenError) -> OpenError {
    match before {
        Some(before) if before.progress() > now.progress() => before,
        _ => now,
    }
}
