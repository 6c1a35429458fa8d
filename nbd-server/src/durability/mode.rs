//! The durability modes, and their names.

use std::fmt;
use std::str::FromStr;

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
        <Mode as clap::ValueEnum>::from_str(text, false).map_err(|_| {
            format!("{text:?} is no durability mode: say writethrough, writeback, early-ack or unsafe")
        })
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
