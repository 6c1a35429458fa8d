//! The NBD server: policy (exports, layers, durability) over mechanism (sockets, threads).
//!
//! ```text
//!   client ─▶ listen ─▶ worker ─▶ session ─▶ Device: order ─▶ durability ─▶ backend ─▶ engine
//! ```
//!
//! | module | what it is for | may use |
//! |---|---|---|
//! | [`cli`], [`config`] | what was typed; what it means, opened and checked | everything below |
//! | [`admin`], [`ctl`] | what an operator asks and tells a running server; the asking side | `export`, `listen` |
//! | [`server`], [`listen`], [`transport`], [`tls`], [`worker`] | sockets, threads, start and stop | `session`, `export`, `engine` |
//! | [`session`] | one connection: requests in, replies out | `device`, `export`, `buf` |
//! | [`export`] | assembles stacks and tells clients what they can do | `device`, `durability`, `layer` |
//! | [`ledger`] | where an export's epoch is kept | `durability`, `engine` |
//! | [`durability`], [`layer`] | what an acknowledgement promises; order of overlapping writes | `device`, `buf` |
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
pub mod export;
pub mod layer;
pub mod ledger;
pub mod listen;
pub mod metrics;
pub mod server;
pub mod session;
pub mod tls;
pub mod transport;
pub mod worker;
