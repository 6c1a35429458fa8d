//! The NBD server: policy (exports, layers, durability) over mechanism (sockets, threads).
//!
//! ```text
//!   client ─▶ listen ─▶ worker ─▶ session ─▶ durability ─▶ Device: layer ─▶ backend ─▶ engine
//! ```
//!
//! | module | what it is for | may use |
//! |---|---|---|
//! | [`cli`], [`config`] | what was typed; what it means, opened and checked | everything below |
//! | [`admin`], [`ctl`] | what an operator asks and tells a running server; the asking side | `export`, `listen` |
//! | [`server`], [`listen`], [`transport`], [`tls`], [`worker`] | sockets, threads, start and stop | `session`, `export`, `engine` |
//! | [`session`] | one connection: requests in, replies out | `device`, `export`, `buf` |
//! | [`export`] | a name, its storage, and the flags that clients are told | `device`, `durability` |
//! | [`epoch_store`] | where an export's epoch is stored | `durability`, `engine` |
//! | [`durability`] | the promises of an acknowledgement; the order of overlapping writes | `device`, `buf` |
//! | [`layer`] | changes to what a backend shows | `device`, `buf` |
//! | [`backend`] | what stores bytes | `device`, `buf`, `engine` |
//! | [`confine`] | what the process can no longer do: user, files, system calls | nothing of ours |
//! | [`engine`] | how operations reach the disk | `buf` |
//! | [`device`], [`buf`], [`metrics`] | the contract, the memory, the numbers | `buf` |
//!
//! Each worker is a thread with its own runtime; a connection lives on one worker for life, and
//! devices are shared by all. From `session` downwards nothing knows a runtime, so a seeded
//! executor can drive the very same code over simulated disks and networks.

pub mod admin;
pub mod backend;
pub mod buf;
pub mod cli;
pub mod config;
pub mod confine;
pub mod ctl;
pub mod device;
pub mod durability;
pub mod engine;
pub mod epoch_store;
pub mod export;
pub mod layer;
pub mod listen;
pub mod metrics;
pub mod server;
pub mod session;
pub mod tls;
pub mod transport;
pub mod worker;
