//! What happens to a device, in one set of words for people, scripts, `watch` and the record.

use crate::negotiate::NegotiateError;
use crate::opener::OpenError;
use crate::same::Difference;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Something that happened. Connections count from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A device was attached.
    Attached {
        /// What it is.
        uri: String,
        /// As what.
        id: Option<String>,
        /// Bytes.
        size_bytes: u64,
    },
    /// It was detached.
    Detached,
    /// Somebody reconnects it from now on.
    Kept {
        /// The process.
        pid: u32,
    },
    /// Nobody does any more.
    Left {
        /// What ended the keeper.
        signal: String,
    },
    /// A connection is dead.
    Dead {
        /// Which; none where only the kernel knows.
        connection: Option<usize>,
    },
    /// A connection could not be made again, for a reason that is told once.
    Failed {
        /// Which.
        connection: Option<usize>,
        /// Why.
        reason: String,
        /// The same for scripts.
        #[serde(default)]
        code: Reason,
    },
    /// A connection is there again.
    Reconnected {
        /// Which.
        connection: usize,
        /// How long it took since its death was noticed.
        seconds: f64,
    },
    /// A connection is given up for a new one: its TLS keys wear out, or the export has grown.
    Renewing {
        /// Which.
        connection: usize,
    },
    /// A request takes longer than the driver waits, which was cutting it for ever.
    Slow {
        /// How long it waits, in seconds.
        seconds: u64,
        /// And from now on.
        raised: u64,
    },
    /// Somebody wanted the keeper to end, but the device is in use.
    Stayed {
        /// By what.
        signal: String,
        /// A use.
        because: String,
    },
    /// The export, and with it the device, has grown.
    Resized {
        /// Bytes.
        size_bytes: u64,
    },
    /// The export has become smaller than the device, which stays as it is.
    Shrunk {
        /// Bytes of the export.
        size_bytes: u64,
    },
}

/// Why there is no new connection, for scripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nobody answers.
    Unreachable,
    /// The server does not want us, or we do not trust it.
    Refused,
    /// It serves something else: fewer bytes, other flags or block sizes.
    Different,
    /// It has lost acknowledged writes, or serves another disk.
    LostWrites,
    /// The kernel's driver.
    Driver,
    /// Anything else.
    #[default]
    #[serde(other)]
    Other,
}

impl Reason {
    /// Why a connection could not be opened.
    #[must_use]
    pub fn of(error: &OpenError) -> Reason {
        match error {
            OpenError::Different(Difference::Epoch { .. } | Difference::Identity { .. }) => {
                Reason::LostWrites
            }
            OpenError::Different(_) => Reason::Different,
            OpenError::Tls(_) | OpenError::Negotiate(NegotiateError::Client(_) | NegotiateError::Unasked) => {
                Reason::Refused
            }
            OpenError::Dial(_) | OpenError::Negotiate(_) => Reason::Unreachable,
            OpenError::Io(_) => Reason::Other,
        }
    }
}

/// Something that happened, when and to which device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts the events of one attachment.
    pub number: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// `/dev/nbdN`.
    pub device: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

impl Event {
    /// Whether somebody might want to do something about it.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        matches!(
            self,
            Event::Dead { .. }
                | Event::Failed { .. }
                | Event::Shrunk { .. }
                | Event::Left { .. }
                | Event::Slow { .. }
                | Event::Stayed { .. }
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = |connection: &Option<usize>| match connection {
            Some(number) => format!("connection {number}"),
            None => "a connection".to_owned(),
        };
        match self {
            Event::Attached { uri, id, size_bytes } => {
                let id = id.as_deref().map(|id| format!(" as {id}")).unwrap_or_default();
                write!(f, "attached{id}: {uri}, {size_bytes} bytes")
            }
            Event::Detached => f.write_str("detached"),
            Event::Kept { pid } => write!(f, "kept by process {pid}"),
            Event::Left { signal } => {
                write!(f, "{signal}: stays attached, and nobody reconnects it any more")
            }
            Event::Dead { connection } => write!(f, "{} is dead", which(connection)),
            Event::Failed { connection, reason, .. } => write!(f, "{}: {reason}", which(connection)),
            Event::Reconnected { connection, seconds } => {
                write!(f, "connection {connection} is back after {seconds:.1} s")
            }
            Event::Renewing { connection } => {
                write!(f, "connection {connection} is given up for a new one")
            }
            Event::Slow { seconds, raised } => write!(
                f,
                "a request takes longer than --timeout {seconds} s again and again; waiting {raised} s from now on"
            ),
            Event::Stayed { signal, because } => {
                write!(
                    f,
                    "{signal}: still kept, because it is {because}; SIGINT ends the keeper all the same"
                )
            }
            Event::Resized { size_bytes } => write!(f, "has {size_bytes} bytes now"),
            Event::Shrunk { size_bytes } => {
                write!(f, "the export has only {size_bytes} bytes now; the device stays as it is")
            }
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_flat_object() {
        let event = Event::Reconnected { connection: 2, seconds: 0.5 };
        let entry = Entry { number: 7, time: 1.5, device: "/dev/nbd0".into(), event };
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            json,
            r#"{"number":7,"time":1.5,"device":"/dev/nbd0","event":"reconnected","connection":2,"seconds":0.5}"#
        );
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }
}
