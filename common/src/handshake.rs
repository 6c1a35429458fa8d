//! Fixed newstyle negotiation, sans-IO, for both roles.
//!
//! Each role is a value that says how many bytes it [needs](server::Server::need), takes exactly
//! those in `step` and moves on by value. Asking for exactly what is needed means that no byte of
//! the next phase (a TLS record, a first request) is ever swallowed by the negotiation, and a
//! state that was left cannot be used again.

pub mod client;
pub mod context;
pub mod server;

use crate::proto::TransmissionFlags;

/// Size constraints of an export, in bytes ("Size constraints" in the spec).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Smallest length and alignment; a power of two, at most 64 KiB.
    pub minimum: u32,
    /// Smallest efficient request; a power of two, at least 512 and `minimum`.
    pub preferred: u32,
    /// Longest payload of one request; at least `preferred`.
    pub maximum_payload: u32,
}

impl BlockSizes {
    /// Whether the three values keep the spec's rules.
    #[must_use]
    pub fn are_valid(self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= 1 << 16
            && self.preferred.is_power_of_two()
            && self.preferred >= self.minimum.max(512)
            && self.maximum_payload >= self.preferred
    }
}

/// What an export says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Size constraints, where they were told.
    pub block_sizes: Option<BlockSizes>,
    /// Canonical name, where it was told.
    pub name: Option<String>,
    /// Text for people, where it was told.
    pub description: Option<String>,
}

/// One line of NBD_OPT_LIST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name to ask for.
    pub name: String,
    /// Text for people.
    pub description: Option<String>,
}
