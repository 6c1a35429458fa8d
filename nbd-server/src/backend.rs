//! What stores bytes: one file each.

pub mod block;
pub mod file;
pub mod memory;
pub mod null;

mod storage;
