//! What a guest leaves on the host: the kernel's messages and what spawned commands printed. It grows while the guest
//! runs and is all there is of it after a power cut.

use std::fs;
use std::path::{Path, PathBuf};

use crate::qemu::Outputs;

/// Kernel messages after which nothing the guest says is worth anything.
const COMPLAINTS: &[&str] = &["Kernel panic", "Oops:", "BUG:", "general protection fault", "WARNING: CPU:"];

const LAST_LINES: usize = 15;

/// What is left of a guest when the power is gone: its logs. Its disks are the files they always were.
pub struct Remains {
    log: PathBuf,
}

impl Remains {
    /// Remains whose files are called `log` and an extension.
    pub(crate) fn new(log: PathBuf) -> Remains {
        Remains { log }
    }

    /// What all its files are called, but for the extension.
    pub fn path(&self) -> &Path {
        &self.log
    }

    /// What a spawned command printed, in whole lines; a line cut short by the power is not among them.
    pub fn log(&self, name: &str) -> String {
        let prefix = format!("{name}: ");
        let ours = |line: &str| line.strip_prefix(&prefix).map(|text| format!("{text}\n"));
        self.spawned_lines().iter().filter_map(|line| ours(line)).collect()
    }

    /// The kernel's messages.
    pub fn console(&self) -> String {
        read_text(&self.outputs().console)
    }

    pub(crate) fn exit_code(&self, name: &str) -> Option<i32> {
        let (started, ended) = (format!("{name}>"), format!("{name}! "));
        let lines = self.spawned_lines();
        let last = lines.iter().rev().find(|line| **line == started || line.starts_with(&ended))?;
        last.strip_prefix(&ended)?.parse().ok()
    }

    fn spawned_lines(&self) -> Vec<String> {
        let text = read_text(&self.outputs().spawned);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// The first line from byte `from` of the console on in which the kernel complains.
    pub(crate) fn complaint(&self, from: usize) -> Option<String> {
        let console = self.console();
        let mut lines = console.get(from..).unwrap_or_default().lines();
        lines.find(|line| COMPLAINTS.iter().any(|words| line.contains(words))).map(str::to_owned)
    }

    /// What the kernel said last, and QEMU if it did, for an error about a machine that is gone.
    pub(crate) fn last_words(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        let complaint =
            self.complaint(0).map(|line| format!("its kernel complained: {line}\n")).unwrap_or_default();
        let emulator = read_text(&self.outputs().qemu);
        let emulator = if emulator.is_empty() { emulator } else { format!("\nQEMU said: {emulator}") };
        format!("{complaint}its last words (see {}):\n{last}{emulator}", self.outputs().console.display())
    }

    /// The file of commands and their answers.
    pub(crate) fn session(&self) -> PathBuf {
        self.file("session")
    }

    pub(crate) fn outputs(&self) -> Outputs {
        Outputs { console: self.file("console"), spawned: self.file("spawned"), qemu: self.file("qemu") }
    }

    fn file(&self, what: &str) -> PathBuf {
        self.log.with_extension(format!("{what}.log"))
    }
}

fn read_text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
