//! What stores bytes: one file each.

pub mod block;
pub mod file;
pub mod memory;
pub mod null;

mod calls;
mod direct;
mod space;
mod storage;

/// How a file or device was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// What for.
    pub access: Access,
    /// Whether around the page cache.
    pub direct: bool,
}

/// What a descriptor was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing.
    ReadWrite,
    /// Reading.
    ReadOnly,
}
