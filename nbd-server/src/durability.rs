//! What an acknowledgement promises: one enum, one layer per mode.
//!
//! | mode | a plain write is acknowledged when | FLUSH and FUA |
//! |---|---|---|
//! | `writethrough` | it is on stable storage | nothing is left to do |
//! | `writeback` | the kernel has it (page cache) | make it stable |
//! | `early-ack` | it was received and copied to a bounded cache | empty the cache, then as above |
//! | `unsafe` | the kernel has it | are acknowledged and ignored |
//!
//! Nothing in the session or the protocol knows the mode, which the operator may change while
//! clients are connected: see [`Durability`]. What a server may forget is told by [`epoch`].

mod careless;
mod early;
pub mod epoch;
mod gate;
mod modes;
mod stable;
mod syncs;

use std::fmt;
use std::str::FromStr;

pub use early::EarlyLimits;
pub use modes::{ChangeError, Durability};

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

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        <Mode as clap::ValueEnum>::from_str(text, false)
            .map_err(|_| format!("{text:?} is no durability mode"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Writethrough => "writethrough",
            Mode::Writeback => "writeback",
            Mode::EarlyAck => "early-ack",
            Mode::Unsafe => "unsafe",
        })
    }
}
