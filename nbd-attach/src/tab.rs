//! `/etc/nbd-attach.tab`: what shall be attached at boot.
//!
//! A line has a name, a URI, and options of `nbd-attach attach` without their dashes, joined by commas; `#` begins a
//! comment. The options are those of the command itself, so that there is one list of them.

use crate::cli::{Attach, Cli, Command};
use crate::identifier::{Id, IdError};
use clap::Parser;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The option that leaves an entry alone at boot; it is for the table alone.
const NOAUTO: &str = "noauto";

/// One line.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, which is the device's id.
    pub name: Id,
    /// Whether it is attached at boot.
    pub auto: bool,
    /// What is to be done.
    pub attach: Attach,
}

/// Why the table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TabError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A line makes no sense.
    #[error("{}, line {number}: {error}", path.display())]
    Line {
        /// Which.
        path: PathBuf,
        /// From 1.
        number: usize,
        /// Why.
        error: LineError,
    },
    /// It is not there.
    #[error("{} has no entry {name:?}", path.display())]
    NoEntry {
        /// Which.
        path: PathBuf,
        /// Not there.
        name: String,
    },
}

/// Why a line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Too few or too many columns.
    #[error("a line has a name, a URI and perhaps options joined by commas")]
    Columns,
    /// Not a name.
    #[error(transparent)]
    Name(#[from] IdError),
    /// Twice the same.
    #[error("there is an entry {0} above")]
    Twice(Id),
    /// Not what attach understands.
    #[error("{0}")]
    Options(String),
}

/// Reads all of it.
///
/// # Errors
/// It cannot be read, or a line makes no sense.
pub fn read(path: &Path) -> Result<Vec<Entry>, TabError> {
    let text = fs::read_to_string(path).map_err(|error| TabError::Read { path: path.to_owned(), error })?;
    let mut entries: Vec<Entry> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |error| TabError::Line { path: path.to_owned(), number, error };
        let Some(entry) = parse(line).map_err(wrong)? else { continue };
        if entries.iter().any(|other| other.name == entry.name) {
            return Err(wrong(LineError::Twice(entry.name)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The entry of that name.
///
/// # Errors
/// There is none, or the table cannot be used.
pub fn find(path: &Path, name: &str) -> Result<Entry, TabError> {
    let found = read(path)?.into_iter().find(|entry| entry.name.to_string() == name);
    found.ok_or_else(|| TabError::NoEntry { path: path.to_owned(), name: name.to_owned() })
}

fn parse(line: &str) -> Result<Option<Entry>, LineError> {
    // A URI has a `#` only where it would begin a comment, too: ours have no fragment.
    let line = line.split('#').next().unwrap_or_default();
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (name, uri, options) = match columns[..] {
        [] => return Ok(None),
        [name, uri] => (name, uri, ""),
        [name, uri, options] => (name, uri, options),
        _ => return Err(LineError::Columns),
    };
    let options = options.split(',').filter(|option| !option.is_empty());
    let (noauto, options): (Vec<&str>, Vec<&str>) = options.partition(|option| *option == NOAUTO);
    let words = ["nbd-attach", "attach", "--keep", "--id", name].map(str::to_owned).into_iter();
    let words = words.chain(options.into_iter().map(|option| format!("--{option}")));
    let typed = Cli::try_parse_from(words.chain(["--".to_owned(), uri.to_owned()]));
    let typed = typed.map_err(|error| LineError::Options(first_line(&error.to_string())))?;
    match typed.command {
        Command::Attach(attach) => Ok(Some(Entry { name: name.parse()?, auto: noauto.is_empty(), attach })),
        _ => Err(LineError::Columns),
    }
}

fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Vec<Entry>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tab");
        fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_a_command() {
        let text =
            "# our disks\n\ndata nbd://h/x\nvault\tnbds://h/y connections=4,timeout=7,noauto # later\n";
        let entries = table(text).unwrap();
        let names: Vec<String> = entries.iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(
            (names, entries[0].auto, entries[1].auto),
            (vec!["data".into(), "vault".into()], true, false)
        );
        let vault = &entries[1].attach;
        assert_eq!((vault.connections, vault.timeout, vault.keep), (4, 7, true));
        assert_eq!((vault.uri.as_str(), vault.id.as_deref()), ("nbds://h/y", Some("vault")));
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        for (text, part) in [
            ("data", "line 1: a line has a name"),
            ("\na b c d", "line 2: a line has"),
            ("nbd0 nbd://h/", "cannot be the id"),
            ("a nbd://h/\na nbd://h/", "line 2: there is an entry a above"),
            ("a nbd://h/ nonsense", "unexpected argument '--nonsense'"),
            ("a nbd://h/ timeout=x", "invalid value 'x'"),
        ] {
            let error = table(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        let error = find(Path::new("/nonexistent/tab"), "a").unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/tab: No such file"), "{error}");
    }
}
