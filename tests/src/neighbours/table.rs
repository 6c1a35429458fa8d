//! The worst waits of a good client, as a table.

use std::fmt;
use std::time::Duration;

use super::{ASKED, LINES_PER_MINUTE_MAX, Outcome};

/// What is slower than a table's limit is marked.
pub struct Table<'a> {
    /// A row each.
    pub outcomes: &'a [Outcome],
    /// What a good client may wait for one answer.
    pub limit: Duration,
}

impl Table<'_> {
    /// What is wrong, a line each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.outcomes.iter().flat_map(|outcome| self.faults_of(outcome)).collect()
    }

    fn faults_of(&self, outcome: &Outcome) -> Vec<String> {
        let trouble = outcome.trouble;
        let mut faults: Vec<String> =
            outcome.faults.iter().map(|fault| format!("{trouble}: {fault}")).collect();
        for asked in ASKED {
            let (worst, before) = (outcome.during.worst(asked), outcome.before.worst(asked));
            if worst > self.limit.max(before * 3) {
                faults.push(format!("{trouble}: {asked} took {worst:.1?}, and {before:.1?} before"));
            }
        }
        if outcome.end > self.limit.max(outcome.end_limit()) {
            faults.push(format!("{trouble}: it ended {:.1?} after SIGTERM", outcome.end));
        }
        if let Some(lines) = outcome.lines_per_minute()
            && lines > LINES_PER_MINUTE_MAX
        {
            faults.push(format!("{trouble}: {lines} log lines in a minute"));
        }
        faults
    }
}

/// Milliseconds.
fn shown(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "The worst waits of a good client in ms, and before its neighbour was in trouble in brackets;"
        )?;
        writeln!(f, "from SIGTERM to the end in ms; log lines in a minute.\n")?;
        write!(f, "| {:<16} | rounds |", "")?;
        ASKED.iter().try_for_each(|asked| write!(f, " {asked} |"))?;
        writeln!(f, " SIGTERM | log |")?;
        writeln!(f, "|---|{}", "---|".repeat(ASKED.len() + 3))?;
        for outcome in self.outcomes {
            write!(f, "| {:<16} | {} |", outcome.trouble, outcome.during.rounds)?;
            for asked in ASKED {
                let (worst, before) = (outcome.during.worst(asked), outcome.before.worst(asked));
                write!(f, " {} ({}) |", shown(worst), shown(before))?;
            }
            let lines = outcome.lines_per_minute().map_or("–".to_owned(), |lines| lines.to_string());
            writeln!(f, " {} | {lines} |", shown(outcome.end))?;
        }
        Ok(())
    }
}
