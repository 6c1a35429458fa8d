//! What an acknowledgement promises: one enum, one match, one layer per mode.
//!
//! | mode | a plain write is acknowledged when | FLUSH and FUA |
//! |---|---|---|
//! | `writethrough` | it is on stable storage | nothing is left to do |
//! | `writeback` | the kernel has it (page cache) | make it stable |
//! | `unsafe` | the kernel has it | are acknowledged and ignored |
//!
//! Nothing in the session or the protocol knows the mode.

mod careless;
mod stable;
mod syncs;

use common::command::Fua;

use crate::device::Layer;

/// What the server may acknowledge before data is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Every write is on stable storage before its reply
    Writethrough,
    /// Reply when the write is done; FLUSH and FUA make it durable
    Writeback,
    /// Reply when the write is received; not available in this version
    EarlyAck,
    /// FLUSH and FUA are ignored: any crash of the host may destroy the file system
    Unsafe,
}

impl Mode {
    /// The layer that keeps the mode's promise, or `None` for a mode this version lacks.
    #[must_use]
    pub fn layer(self) -> Option<Box<dyn Layer>> {
        match self {
            Mode::Writethrough => Some(Box::new(stable::Stable::new(Fua::Yes))),
            Mode::Writeback => Some(Box::new(stable::Stable::new(Fua::No))),
            Mode::EarlyAck => None,
            Mode::Unsafe => Some(Box::new(careless::Careless)),
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
