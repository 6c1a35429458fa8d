//! How long the parts of a test run took, printed at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Lines of the table, at most: the dearest parts.
const LINES_MAX: usize = 20;

/// Virtual machines that are listed: those that ran longest.
const MACHINES_MAX: usize = 12;

/// Durations of the parts of a run.
#[derive(Default)]
pub(crate) struct Times {
    /// In the order in which they ran.
    parts: Vec<(String, Duration)>,
    /// Seconds that virtual machines ran for each test, several at once.
    machines: BTreeMap<String, f64>,
}

impl Times {
    /// Runs a part and notes its duration.
    pub(crate) fn part<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let done = work();
        self.parts.push((name.to_owned(), begun.elapsed()));
        done
    }

    /// Takes the run times of virtual machines: lines of seconds and the name of a test.
    pub(crate) fn machines(&mut self, lines: &str) {
        for (seconds, test) in lines.lines().filter_map(|line| line.split_once(' ')) {
            *self.machines.entry(test.to_owned()).or_default() += seconds.parse().unwrap_or(0.0);
        }
    }

    /// Runs `cargo test`, shows its output, and notes the duration of each test program.
    pub(crate) fn tests(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let (output, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // The command holds writers of its own, and the output ends with the last one.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut part = (format!("{name}: compiling"), Instant::now());
        for line in BufReader::new(output).split(b'\n') {
            let mut line = line?;
            if let Some(program) = program_of(&String::from_utf8_lossy(&line)) {
                let (ended, begun) = std::mem::replace(&mut part, (program, Instant::now()));
                self.parts.push((ended, begun.elapsed()));
            }
            line.push(b'\n');
            io::stdout().write_all(&line)?;
        }
        let status = child.wait()?;
        self.parts.push((part.0, part.1.elapsed()));
        ensure!(status.success(), "{name} failed ({status})");
        Ok(())
    }
}

/// The test program that a line of cargo's says to be running now.
fn program_of(line: &str) -> Option<String> {
    if let Some(crate_name) = line.trim_start().strip_prefix("Doc-tests ") {
        return Some(format!("{crate_name} (doc tests)"));
    }
    let (source, program) =
        line.trim_start().strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let (name, _hash) = Path::new(program).file_name()?.to_str()?.rsplit_once('-')?;
    Some(if source.starts_with("unittests") { format!("{name} (unit tests)") } else { name.to_owned() })
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: Duration = self.parts.iter().map(|(_, took)| *took).sum();
        let mut dearest: Vec<_> = self.parts.iter().collect();
        dearest.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        let (listed, others) = dearest.split_at(dearest.len().min(LINES_MAX));
        for (name, took) in listed {
            writeln!(f, "{:>7.1} s  {name}", took.as_secs_f64())?;
        }
        let rest: Duration = others.iter().map(|(_, took)| *took).sum();
        writeln!(f, "{:>7.1} s  {} others", rest.as_secs_f64(), others.len())?;
        write!(f, "{:>7.1} s  in all", total.as_secs_f64())?;
        let mut machines: Vec<_> = self.machines.iter().collect();
        machines.sort_by(|one, other| other.1.total_cmp(one.1));
        if !machines.is_empty() {
            let total: f64 = self.machines.values().sum();
            write!(f, "\nvirtual machines, several at a time: {total:.1} s")?;
        }
        machines.iter().take(MACHINES_MAX).try_for_each(|(test, took)| write!(f, "\n{took:>7.1} s  {test}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_names() {
        let named = |line| program_of(line).unwrap_or_default();
        assert_eq!(named("     Running tests/mutants/main.rs (target/debug/deps/mutants-ed69)"), "mutants");
        assert_eq!(
            named("     Running unittests src/lib.rs (target/debug/deps/nbd_server-12ab)"),
            "nbd_server (unit tests)"
        );
        assert_eq!(named("   Doc-tests common"), "common (doc tests)");
        assert_eq!(named("test running_is_told ... ok"), "");
    }

    #[test]
    fn a_command_that_fails_is_told_after_its_output() {
        let mut times = Times::default();
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo '   Doc-tests common'; exit 3"]);
        assert!(times.tests("tests", &mut fails).is_err());
        assert!(times.to_string().contains("common (doc tests)"));
        assert!(times.tests("tests", Command::new("true").arg("x")).is_ok());
    }
}
