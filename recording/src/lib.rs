//! Recordings: every write, flush and mark of an export in the order in which they were received, and when each was
//! answered.
//!
//! A recording is what `nbd-crash` explores. `nbd-server --record` and `nbd-crash record` make one with a
//! [`Recorder`]; a [`Reader`] gives its [`Record`]s back. Whatever was promised to a client is in the recording
//! before the client knows: a request is written down before it is carried out, an answer before it is sent.
//!
//! # The file
//! Little endian, append only. A header of [`HEADER_LEN`] bytes, then records, each a head of [`HEAD_LEN`] bytes and a
//! payload:
//!
//! | header at | field |
//! |---|---|
//! | 0 | `NBDREC\x01\0` |
//! | 8 | u32: length of the header |
//! | 12 | u32: 512, the unit in which writes may tear |
//! | 16 | u64: bytes of the export |
//! | 24 | u16: transmission flags the clients were told |
//! | 32 | u64: when it began, nanoseconds since 1970 |
//! | 96 | u16 length and text: name of the export |
//! | 4092 | u32: CRC-32C of what is before |
//!
//! | head at | field |
//! |---|---|
//! | 0 | u8: kind. 1 request, 2 answer, 3 mark, 4 connection, 7 end |
//! | 2 | u16: connection |
//! | 4 | u32: bytes of the payload |
//! | 8 | u64: sequence number; grows by one with each record |
//! | 16 | u64: when, nanoseconds since the beginning |
//! | 24 | u32: CRC-32C of the head before this field and the payload |
//!
//! | kind | payload |
//! |---|---|
//! | request | u64 cookie, u64 offset, u64 length, u16 command, u16 command flags; for a WRITE its data, unless all of it is zero |
//! | answer | u64 sequence number of the request, u32 error of the protocol, 0 for success |
//! | mark | text |
//! | connection | u8: 0 opened, 1 closed |
//! | end | nothing: the recording is whole |
//!
//! What was being appended when the recorder was killed is short, and no fault.

#![forbid(unsafe_code)]

mod marks;
mod read;
mod write;

pub use marks::{Marks, send_mark, vacate};
pub use read::{ReadError, Reader};
pub use write::{Recorder, Tap};

/// Bytes of the header.
pub const HEADER_LEN: usize = 4096;
/// Bytes of a record's head.
pub const HEAD_LEN: usize = 32;
/// Bytes of a request's payload before its data.
const REQUEST_LEN: usize = 28;
/// What a recording begins with.
pub const MAGIC: &[u8; 8] = b"NBDREC\x01\0";
/// The unit in which a write may tear.
pub const UNIT: u32 = 512;
/// Longest payload of a record: the longest WRITE that servers take, and what precedes its data.
pub const PAYLOAD_MAX: usize = (64 << 20) + REQUEST_LEN;
/// Longest text of a mark.
pub const MARK_MAX: usize = 4096;
/// Longest name of an export: the spec's longest string fits before the header's checksum less this.
const NAME_MAX: usize = 3900;

/// What was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the export.
    pub size: u64,
    /// Transmission flags that clients were told.
    pub flags: u16,
    /// When it began, nanoseconds since 1970; what a recorder that begins sets.
    pub began_ns: u64,
    /// Name of the export, shortened if it is very long.
    pub name: String,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Grows by one with each record, from 1.
    pub seq: u64,
    /// When, nanoseconds since the beginning.
    pub at_ns: u64,
    /// Which connection, from 1; 0 for none.
    pub connection: u16,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A request was received whole, and is carried out from now on.
    Request(Request),
    /// It has been carried out, or has failed, and the client will be told.
    Answer {
        /// Sequence number of the request.
        request: u64,
        /// Error value of the protocol, 0 for success.
        error: u32,
    },
    /// Whoever drives the clients says something.
    Mark(String),
    /// A client has chosen the export.
    Opened,
    /// Its connection has ended.
    Closed,
    /// The recorder ended in good order.
    End,
}

/// A request that changes something or makes it durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Number of the command in the protocol.
    pub command: u16,
    /// Its flags.
    pub flags: u16,
    /// Data of a WRITE; nothing of one that writes zeroes.
    pub data: Vec<u8>,
}
