//! What is said over the admin socket: a [`Request`] and an [`Answer`] per line, as JSON.
//!
//! ```text
//! {"command":"mode","export":"disk","mode":"writethrough"}
//! {"exports":[{"name":"disk","mode":"writethrough","size_bytes":1048576,…}]}
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::export::{Export, Source};

/// A question or an order. Without a name it is about the only export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How exports are; without a name, all of them.
    List {
        /// Only this one.
        export: Option<String>,
    },
    /// Another durability mode.
    Mode {
        /// Whose.
        export: Option<String>,
        /// Its name, as on the command line.
        mode: String,
    },
    /// Everything acknowledged shall be stable.
    Drain {
        /// Whose.
        export: Option<String>,
    },
    /// A loss is known; the export shall work again.
    ClearPoison {
        /// Whose.
        export: Option<String>,
    },
}

impl Request {
    /// The export's name, where one was given.
    #[must_use]
    pub fn export(&self) -> Option<&str> {
        match self {
            Request::List { export }
            | Request::Mode { export, .. }
            | Request::Drain { export }
            | Request::ClearPoison { export } => export.as_deref(),
        }
    }
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The exports concerned, as they are now.
    Exports(Vec<Status>),
    /// It was not done, and why: a sentence.
    Error(String),
}

/// How an export is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name; empty for the default export.
    pub name: String,
    /// The durability mode in force.
    pub mode: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Bytes in the early-ack cache: acknowledged and not yet given to the host.
    pub dirty_bytes: u64,
    /// Bytes acknowledged and not known to be stable, those included.
    pub unstable_bytes: u64,
    /// Why every FLUSH and write fails, if they do.
    pub poison: Option<String>,
    /// The write verifier, sixteen hexadecimal digits; none where nothing is ever written.
    pub epoch: Option<String>,
    /// Whether it takes no more clients, and is listed until it has let go of what it serves.
    pub ending: bool,
    /// What it serves, where that has a path.
    pub source: Option<SourceStatus>,
    /// What was done since the server started.
    pub counters: BTreeMap<String, u64>,
}

/// How the file or device of an export is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Where it was opened.
    pub path: PathBuf,
    /// What is there now: `unchanged`, `shrunk`, `grown`, `replaced`, `gone` or `unknown`.
    pub found: String,
    /// The same in a sentence, where it is not as it was.
    pub told: Option<String>,
}

impl Status {
    /// How an export is now.
    #[must_use]
    pub fn of(export: &Export) -> Status {
        let (shape, health) = (export.shape(), export.health());
        Status {
            name: export.name().to_owned(),
            mode: export.mode().to_string(),
            size_bytes: shape.size,
            read_only: shape.read_only,
            dirty_bytes: health.dirty_bytes as u64,
            unstable_bytes: health.unstable_bytes,
            poison: health.poison,
            epoch: export.epoch().map(|epoch| format!("{epoch:016x}")),
            ending: export.is_retired(),
            source: export.source().map(|source| SourceStatus::of(source)),
            counters: export.counters().rows().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }
}

impl SourceStatus {
    fn of(source: &Source) -> SourceStatus {
        let (path, found) = (source.path().to_owned(), source.found().to_string());
        SourceStatus { path, found, told: source.told() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_a_person_would_write_them() {
        let read = |text| serde_json::from_str::<Request>(text).ok();
        assert_eq!(read(r#"{"command":"list"}"#), Some(Request::List { export: None }));
        let mode = Request::Mode { export: Some("a".into()), mode: "early-ack".into() };
        assert_eq!(read(r#"{"command":"mode","export":"a","mode":"early-ack"}"#), Some(mode));
        assert_eq!(read(r#"{"command":"clear-poison"}"#), Some(Request::ClearPoison { export: None }));
        for bad in ["", "{}", r#"{"command":"mode"}"#, r#"{"command":"list","exprot":"a"}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
