//! What an acknowledgement promises: one enum, one match, one layer per mode.
//!
//! | mode | a plain write is acknowledged when | FLUSH and FUA |
//! |---|---|---|
//! | `writethrough` | it is on stable storage | nothing is left to do |
//! | `writeback` | the kernel has it (page cache) | make it stable |
//! | `early-ack` | it was received and copied to a bounded cache | empty the cache, then as above |
//! | `unsafe` | the kernel has it | are acknowledged and ignored |
//!
//! Nothing in the session or the protocol knows the mode.

mod careless;
mod early;
mod stable;
mod syncs;

use std::sync::Arc;

use common::command::Fua;

use crate::device::{Device, layered};
pub use early::EarlyLimits;
use syncs::Syncs;

/// What the server may acknowledge before data is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Every write is on stable storage before its reply
    Writethrough,
    /// Reply when the write is done; FLUSH and FUA make it durable
    Writeback,
    /// Reply when the write is received; errors surface at the next FLUSH or FUA
    EarlyAck,
    /// FLUSH and FUA are ignored: any crash of the host may destroy the file system
    Unsafe,
}

impl Mode {
    /// Puts the layers that keep the mode's promise on top of `storage`.
    #[must_use]
    pub fn promise(self, storage: Arc<dyn Device>, limits: EarlyLimits) -> Arc<dyn Device> {
        let syncs = Arc::new(Syncs::new());
        let stable = |every_write| Box::new(stable::Stable::new(every_write, syncs.clone()));
        match self {
            Mode::Writethrough => layered(stable(Fua::Yes), storage),
            Mode::Writeback => layered(stable(Fua::No), storage),
            Mode::EarlyAck => {
                let early = early::Early::new(limits, syncs.clone());
                layered(Box::new(early), layered(stable(Fua::No), storage))
            }
            Mode::Unsafe => layered(Box::new(careless::Careless), storage),
        }
    }

    /// How the export's description names the mode to clients.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Mode::Writethrough => "durability=writethrough",
            Mode::Writeback => "durability=writeback",
            Mode::EarlyAck => "durability=early-ack",
            Mode::Unsafe => "durability=unsafe (UNSAFE: FLUSH and FUA are ignored)",
        }
    }
}
