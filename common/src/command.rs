//! Requests of the transmission phase.
//!
//! Parse, don't validate: a raw [`RequestHeader`] becomes a typed [`Command`] or a [`Refusal`]
//! that says what to answer and how many bytes of payload to throw away. After that no flag bits
//! and no unchecked offsets exist. Under extended headers lengths have 64 bits, and a request says
//! by a flag whether a payload follows.

mod request;

pub use request::RequestHeader;

use crate::handshake::context::ReplyStyle;
use crate::proto::{TransmissionFlags, WireError};

/// Whether the effect must be on stable storage before the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fua {
    /// NBD_CMD_FLAG_FUA was set.
    Yes,
    /// A later FLUSH makes it durable.
    No,
}

/// Whether zeroes may be represented by a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hole {
    /// Space may be given back.
    Allowed,
    /// NBD_CMD_FLAG_NO_HOLE was set: later writes there must not fail for want of space.
    Forbidden,
}

/// Whether zeroes are worth having at any price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speed {
    /// However long it takes.
    Any,
    /// NBD_CMD_FLAG_FAST_ZERO was set: fail rather than take as long as writing them.
    Fast,
}

/// Whether a READ may be answered in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chunks {
    /// Holes may be told apart from data.
    Any,
    /// NBD_CMD_FLAG_DF was set, or replies are simple: all data in one piece.
    One,
}

/// How many extents a BLOCK_STATUS wants of each context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extents {
    /// Several are welcome.
    Any,
    /// NBD_CMD_FLAG_REQ_ONE was set.
    One,
}

/// Contexts that a BLOCK_STATUS is about, by their ids from 1 to [`CONTEXTS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextSet(u32);

/// Contexts that a connection may have selected.
pub const CONTEXTS_MAX: u32 = 32;

impl ContextSet {
    /// All that were selected.
    pub const ALL: ContextSet = ContextSet(u32::MAX);
    /// None yet.
    pub const NONE: ContextSet = ContextSet(0);

    /// Whether the context of that id is among them.
    #[must_use]
    pub fn contains(self, id: u32) -> bool {
        (1..=CONTEXTS_MAX).contains(&id) && self.0 & 1 << (id - 1) != 0
    }

    /// These and one more, which must have an id in range.
    #[must_use]
    pub fn with(self, id: u32) -> ContextSet {
        ContextSet(self.0 | 1 << (id - 1))
    }
}

/// How zeroes shall be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Zeroing {
    /// Whether by giving space back.
    pub hole: Hole,
    /// How fast.
    pub speed: Speed,
}

/// A range of an export: `len` bytes at byte `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl Span {
    /// The first byte after the range. Spans of admitted commands never wrap.
    #[must_use]
    pub fn end(self) -> u64 {
        self.at + self.len
    }
}

/// What a client asks for, checked against its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Answer with data.
    Read(Span, Chunks),
    /// Store the payload that follows the header.
    Write(Span, Fua),
    /// Make everything acknowledged so far durable.
    Flush,
    /// The range's content is no longer needed.
    Trim(Span, Fua),
    /// The range reads as zero from now on.
    WriteZeroes(Span, Zeroing, Fua),
    /// Bring the range nearer, for reads to come.
    Cache(Span),
    /// Answer with what these of the selected contexts say about the range.
    BlockStatus(Span, Extents, ContextSet),
    /// A BLOCK_STATUS whose payload names the range and the contexts: [`RequestHeader::filter`]
    /// makes the command of it.
    Filter,
    /// Finish what is outstanding and close; never answered.
    Disconnect,
}

/// A request that is answered with an error and has no other effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The answer.
    pub error: WireError,
    /// Bytes of payload that follow the header and must be thrown away to stay in step.
    pub skip: u64,
}

/// What was agreed for a connection: requests are checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of the export.
    pub size: u64,
    /// Transmission flags the client was told.
    pub flags: TransmissionFlags,
    /// Alignment and smallest length of requests, in bytes.
    pub block_min: u32,
    /// Longest READ or WRITE, in bytes; it may be longer than what the client was told.
    pub payload_max: u32,
    /// Metadata contexts that were selected, at most [`CONTEXTS_MAX`]; their ids count from 1.
    pub contexts: u32,
    /// How requests are answered, and which headers they have.
    pub style: ReplyStyle,
}
