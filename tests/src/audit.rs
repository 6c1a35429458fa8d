//! An audit of what an NBD server had done before it replied: named checks that run on any server.
//!
//! Each [`Check`] is a short script of requests to a server that serves a real file under
//! `strace`, judged from the replies, the trace and the file. The server is a black box: the
//! audit knows its command line and which system calls there are, and nothing else. A
//! [`Subject`] is a server in one mode; whether a check is owed by it is settled before its
//! result is seen, so that a mode is blamed for what it promised and for nothing else.
//!
//! | module | what it is for |
//! |---|---|
//! | [`subject`] | the servers and modes, and what each may forgo |
//! | [`checks`] | the list: one row each |
//! | [`running`] | a server under `strace`, its clients, its faults |
//! | `stable`, `failing`, `order`, `ends` | the scripts, by theme |
//! | [`table`] | the result, for people and for programs |

pub mod checks;
mod ends;
mod failing;
mod order;
pub mod running;
mod stable;
pub mod subject;
pub mod table;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use subject::{Subject, Theme};

/// How a script ended: the property was seen, or one sentence tells what was seen instead.
pub type Outcome = anyhow::Result<()>;

/// One named property and the script that looks for it.
pub struct Check {
    /// Its rule in the durability contract.
    pub rule: &'static str,
    /// The property, in words.
    pub name: &'static str,
    /// What kind of promise it is.
    pub theme: Theme,
    /// Who owes it.
    pub owed: Owed,
    script: fn(&Subject) -> Outcome,
}

/// Who owes a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Every server: the protocol says so, or acknowledged data is lost otherwise.
    ByAll,
    /// Only the servers of this project, which promise more than the protocol asks.
    ByOurs,
    /// Only a mode that promises that every acknowledged write is stable.
    ByWritethrough,
}

/// What became of one check on one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The property was seen.
    Holds,
    /// It is owed and something else was seen.
    Fails(String),
    /// The server does not offer what the check needs.
    NotOffered,
    /// It is not owed, and it was not seen.
    NotPromised(String),
    /// The audit saw too little to judge.
    Unseen(String),
}

/// Why a script ended without a finding.
#[derive(Debug)]
pub(crate) enum NoFinding {
    NotOffered,
    Unseen(String),
}

impl fmt::Display for NoFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoFinding::NotOffered => f.write_str("the server does not offer it"),
            NoFinding::Unseen(what) => f.write_str(what),
        }
    }
}

impl NoFinding {
    pub(crate) fn into_error(self) -> anyhow::Error {
        anyhow::Error::msg(self)
    }
}

impl Check {
    /// Runs the script on a subject. What the subject promises does not matter here.
    #[must_use]
    pub fn examine(&self, subject: &Subject) -> Verdict {
        Verdict::of(|| (self.script)(subject))
    }

    /// Runs the script and holds the result against what the subject promises.
    #[must_use]
    pub fn judge(&self, subject: &Subject) -> Verdict {
        match self.examine(subject) {
            Verdict::Fails(seen) if !self.is_owed_by(subject) => Verdict::NotPromised(seen),
            verdict => verdict,
        }
    }

    /// Whether the subject promises this property.
    #[must_use]
    pub fn is_owed_by(&self, subject: &Subject) -> bool {
        let owed = match self.owed {
            Owed::ByAll => true,
            Owed::ByOurs => subject.family == subject::Family::Ours,
            Owed::ByWritethrough => subject.is_writethrough(),
        };
        owed && !subject.forgoes.contains(&self.theme)
    }
}

impl Verdict {
    /// Runs a script. The clients of this crate panic where a server leaves the protocol or falls silent.
    pub(crate) fn of(script: impl FnOnce() -> Outcome) -> Verdict {
        match catch_unwind(AssertUnwindSafe(script)) {
            Ok(Ok(())) => Verdict::Holds,
            Ok(Err(error)) => match error.downcast::<NoFinding>() {
                Ok(NoFinding::NotOffered) => Verdict::NotOffered,
                Ok(NoFinding::Unseen(what)) => Verdict::Unseen(what),
                Err(error) => Verdict::Fails(format!("{error:#}")),
            },
            Err(panic) => Verdict::Fails(said(&*panic)),
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the script panicked").to_owned()
}
