//! The result of an audit: rows are checks, columns are subjects.

use std::fmt::{self, Display, Formatter};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use super::checks::CHECKS;
use super::subject::Family;
use super::{Subject, Verdict};

/// Verdicts of every check on some subjects.
pub struct Table {
    columns: Vec<Column>,
}

struct Column {
    subject: &'static Subject,
    version: String,
    verdicts: Vec<Verdict>,
}

impl Table {
    /// Runs every check on every subject. Most of the time is spent in waiting for faults to take
    /// their time, so the subjects are audited side by side.
    ///
    /// # Panics
    /// When a check cannot be run at all.
    #[must_use]
    pub fn of(subjects: &[&'static Subject]) -> Table {
        let audit = |subject: &'static Subject| {
            let verdicts = CHECKS.iter().map(|check| check.judge(subject)).collect();
            Column { subject, version: version(subject), verdicts }
        };
        let columns = thread::scope(|scope| {
            let threads: Vec<_> =
                subjects.iter().map(|subject| scope.spawn(move || audit(subject))).collect();
            threads.into_iter().map(|thread| thread.join().expect("verdicts catch panics")).collect()
        });
        Table { columns }
    }

    /// Whether every property that the servers of this project owe was seen.
    #[must_use]
    pub fn ours_is_clean(&self) -> bool {
        let ours = self.columns.iter().filter(|column| column.subject.family == Family::Ours);
        let mut verdicts = ours.flat_map(|column| &column.verdicts);
        verdicts.all(|verdict| matches!(verdict, Verdict::Holds | Verdict::NotPromised(_)))
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let servers: Vec<Value> = self.columns.iter().map(Column::to_json).collect();
        json!({ "servers": servers })
    }
}

impl Column {
    fn to_json(&self) -> Value {
        let checks = CHECKS.iter().zip(&self.verdicts);
        let checks: Vec<Value> = checks
            .map(|(check, verdict)| {
                json!({
                    "rule": check.rule,
                    "check": check.name,
                    "verdict": verdict.word(),
                    "seen": verdict.seen(),
                })
            })
            .collect();
        json!({
            "server": self.subject.title(),
            "version": self.version,
            "settings": self.subject.settings,
            "checks": checks,
        })
    }
}

impl Verdict {
    /// What stands in a cell.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Holds => "ok",
            Verdict::Fails(_) => "FAIL",
            Verdict::NotOffered => "not offered",
            Verdict::NotPromised(_) => "not promised",
            Verdict::Unseen(_) => "unseen",
        }
    }

    /// What was seen instead of the property.
    #[must_use]
    pub fn seen(&self) -> Option<&str> {
        match self {
            Verdict::Fails(seen) | Verdict::NotPromised(seen) | Verdict::Unseen(seen) => Some(seen),
            Verdict::Holds | Verdict::NotOffered => None,
        }
    }
}

/// Columns of the name of a check.
const NAME_WIDTH: usize = 62;

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let title = |column: &Column| column.subject.title();
        let widths: Vec<usize> = self.columns.iter().map(|it| title(it).len().max(12)).collect();
        let line = |f: &mut Formatter<'_>, head: &str, cells: &mut dyn Iterator<Item = String>| {
            write!(f, "{head:NAME_WIDTH$}")?;
            for (cell, width) in cells.zip(&widths) {
                write!(f, "  {cell:width$}")?;
            }
            writeln!(f)
        };
        line(f, "", &mut self.columns.iter().map(title))?;
        for (row, check) in CHECKS.iter().enumerate() {
            let head = format!("{:3} {}", check.rule, check.name);
            line(f, &head, &mut self.columns.iter().map(|it| it.verdicts[row].word().to_owned()))?;
        }
        self.notes(f)
    }
}

impl Table {
    /// One sentence for every cell that is not fine.
    fn notes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for column in &self.columns {
            let settings = column.subject.settings.join(" ");
            writeln!(f, "\n{}: {}  {settings}", column.subject.title(), column.version)?;
            for (check, verdict) in CHECKS.iter().zip(&column.verdicts) {
                if let Verdict::Fails(seen) | Verdict::Unseen(seen) = verdict {
                    writeln!(f, "  {} {}: {}: {seen}.", verdict.word(), check.rule, check.name)?;
                }
            }
        }
        Ok(())
    }
}

/// What the program says its version is.
fn version(subject: &Subject) -> String {
    let flag = if subject.family == Family::NbdServer { "-V" } else { "--version" };
    let said = subject.program().and_then(|program| Command::new(program).arg(flag).output().ok());
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
    said.and_then(|said| said.lines().next().map(str::to_owned)).unwrap_or_default()
}
