//! Every way in which what was typed can make no sense, each a sentence.

use super::{BLOCK_SIZE_MIN, CONNECTIONS_MAX, TIMEOUT_MAX};
use crate::device::DeviceNameError;
use crate::identifier::IdError;
use crate::tls::TlsError;
use common::uri::{Uri, UriError};

/// Why what was typed makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a URI of NBD.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Not a device of the driver.
    #[error(transparent)]
    Device(#[from] DeviceNameError),
    /// Not a name for one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A path that cannot be made absolute.
    #[error("{0}")]
    Path(#[from] std::io::Error),
    /// TLS options without TLS.
    #[error("{0} is for nbds://, which encrypts; the URI says nbd://, which does not")]
    NotEncrypted(&'static str),
    /// Waiting for ever for what was sent on a dead connection.
    #[error("--keep needs a --timeout above 0: what is in flight is sent again when its time is up")]
    KeepForEver,
    /// nbd+vsock.
    #[error("{0}: the kernel's nbd driver takes only TCP and Unix sockets, no vsock")]
    Vsock(Uri),
    /// TLS that cannot be had.
    #[error(transparent)]
    Encryption(#[from] TlsError),
    /// `--connections`.
    #[error("--connections {0}: say a number from 1 to {CONNECTIONS_MAX}")]
    Connections(usize),
    /// One of the timeouts.
    #[error("{option} {seconds}: at most {} seconds (a day)", TIMEOUT_MAX.as_secs())]
    Timeout {
        /// Which.
        option: &'static str,
        /// What was typed.
        seconds: u64,
    },
    /// `--block-size`.
    #[error(
        "--block-size {typed}: say a power of two from {BLOCK_SIZE_MIN} to {page_size} (this machine's page)"
    )]
    BlockSize {
        /// What was typed.
        typed: u32,
        /// The most the driver takes.
        page_size: u32,
    },
}
