//! What the viewer sees: chapters, a plain sentence before each step, the command as one would type it, and what it
//! printed, cut to what fits.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;

/// Where the story is told.
pub(crate) struct Screen {
    out: Box<dyn Write>,
    colour: bool,
}

/// Enough to recognise a command's output; the viewer can run it to see all.
const LINES_MAX: usize = 5;
const COLUMNS_MAX: usize = 108;

impl Screen {
    /// Standard output, with colours if it is a terminal and nobody objects.
    pub(crate) fn stdout() -> Screen {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Screen { out: Box::new(io::stdout()), colour }
    }

    /// Nobody watches.
    #[cfg(test)]
    pub(crate) fn dark() -> Screen {
        Screen { out: Box::new(io::sink()), colour: false }
    }

    /// A heading.
    pub(crate) fn chapter(&mut self, title: &str) -> Result<()> {
        let title = format!("=== {title} ===");
        let title = self.bold(&title);
        self.line(&format!("\n{title}"))
    }

    /// A sentence on what happens next, or on what has been seen.
    pub(crate) fn say(&mut self, sentence: &str) -> Result<()> {
        self.line(&format!("\n{sentence}"))
    }

    /// A sentence that belongs to the one before.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}")?;
        Ok(self.out.flush()?)
    }

    /// A command that is about to run.
    pub(crate) fn command(&mut self, prompt: &str, command: &str) -> Result<()> {
        let command = self.bold(command);
        self.line(&format!("  {prompt}# {command}"))
    }

    /// What a command printed.
    pub(crate) fn output(&mut self, text: &str) -> Result<()> {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(LINES_MAX) {
            self.line(&format!("    {}", shortened(&uncoloured(line))))?;
        }
        match lines.len().saturating_sub(LINES_MAX) {
            0 => Ok(()),
            more => self.line(&format!("    … {more} more lines")),
        }
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= COLUMNS_MAX {
        return line.to_owned();
    }
    let start: String = line.chars().take(COLUMNS_MAX - 1).collect();
    format!("{start}…")
}

/// Without the colours of a program that took the guest's line for a terminal: they would be cut in two.
fn uncoloured(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_plain_and_fits() {
        assert_eq!(uncoloured("\x1b[32m INFO\x1b[0m /dev/nbd0"), " INFO /dev/nbd0");
        assert_eq!(shortened("ü").as_str(), "ü");
        assert_eq!(shortened(&"ü".repeat(COLUMNS_MAX + 1)).chars().count(), COLUMNS_MAX);
    }
}
