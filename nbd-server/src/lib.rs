//! The NBD server: policy (exports, layers, durability) over mechanism (sockets, threads).
//!
//! placeholder
pub mod backend;
pub mod buf;
pub mod device;
pub mod durability;
pub mod engine;
pub mod export;
pub mod layer;
pub mod metrics;
