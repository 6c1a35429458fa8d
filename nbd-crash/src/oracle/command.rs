//! Judges by a command of the user's: it finds the state at the NBD URI in `NBD_CRASH_URI`, writable, and what was
//! marked until the crash in the file `NBD_CRASH_MARKS`, a line each. It exits with 0 if all is well and with 1 if
//! something is wrong, which its output tells.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::Oracle;
use crate::history::{Happening, History};
use crate::image::Image;
use crate::serve::Served;

/// The judge.
pub struct CommandOracle {
    history: Arc<History>,
    command: String,
    served: Served,
    uri: String,
    directory: TempDir,
}

impl CommandOracle {
    /// One that runs a command by the shell for each state.
    pub fn new(history: Arc<History>, command: &str) -> anyhow::Result<CommandOracle> {
        let (served, uri, directory) = Served::in_private(history.header.size)?;
        Ok(CommandOracle { history, command: command.to_owned(), served, uri: uri.to_string(), directory })
    }

    fn marks(&self, time: usize) -> impl Iterator<Item = &str> {
        self.history.events[..time].iter().filter_map(|event| match &event.what {
            Happening::Mark(text) => Some(&text[..]),
            _ => None,
        })
    }
}

impl Oracle for CommandOracle {
    fn judge(&mut self, time: usize, image: &Arc<Image>) -> anyhow::Result<Vec<String>> {
        let marks = self.directory.path().join("marks");
        fs::write(&marks, self.marks(time).map(|mark| format!("{mark}\n")).collect::<String>())?;
        self.served.show(image);
        let out = Command::new("sh")
            .args(["-c", &self.command])
            .env("NBD_CRASH_URI", &self.uri)
            .env("NBD_CRASH_MARKS", &marks)
            .output()
            .context("cannot run the shell")?;
        self.served.clear();
        let said = String::from_utf8_lossy(&out.stdout);
        match out.status.code() {
            Some(0) => Ok(Vec::new()),
            Some(1) if said.trim().is_empty() => Ok(vec!["the command found a fault".to_owned()]),
            Some(1) => Ok(said.lines().map(str::to_owned).collect()),
            _ => {
                bail!("the command failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim())
            }
        }
    }

    fn promises(&mut self, time: usize) -> anyhow::Result<u64> {
        Ok(self.marks(time).count() as u64)
    }
}
