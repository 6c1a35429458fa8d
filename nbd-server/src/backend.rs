//! What stores bytes: one file each.

pub mod block;
pub mod file;
pub mod memory;
pub mod null;

mod storage;

/// What a descriptor was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing.
    ReadWrite,
    /// Reading.
    ReadOnly,
}
