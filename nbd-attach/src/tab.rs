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
/// What people are used to write into such tables, and what goes without saying here.
const UNDERSTOOD: [&str; 4] = ["_netdev", "auto", "defaults", "nofail"];

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

/// The entries that make sense, and what is wrong with the other lines: a line harms only itself.
#[derive(Debug)]
pub struct Table {
    /// In their order.
    pub entries: Vec<Entry>,
    /// One for each of the other lines, with the name it begins with.
    pub faults: Vec<(String, TabError)>,
}

/// Reads all of it.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<Table, TabError> {
    let text = fs::read(path).map_err(|error| TabError::Read { path: path.to_owned(), error })?;
    let text = String::from_utf8_lossy(&text);
    let mut table = Table { entries: vec![], faults: vec![] };
    // Some editors begin a file with an invisible mark.
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let twice = |entry: &Entry| table.entries.iter().any(|other: &Entry| other.name == entry.name);
        let parsed = match parse(line) {
            Ok(Some(entry)) if twice(&entry) => Err(LineError::Twice(entry.name)),
            parsed => parsed,
        };
        match parsed {
            Ok(entry) => table.entries.extend(entry),
            Err(error) => {
                let name = line.split_whitespace().next().unwrap_or_default().to_owned();
                table.faults.push((name, TabError::Line { path: path.to_owned(), number, error }));
            }
        }
    }
    Ok(table)
}

/// The entry of that name.
///
/// # Errors
/// There is none, or its line makes no sense.
pub fn find(path: &Path, name: &str) -> Result<Entry, TabError> {
    let table = read(path)?;
    let found = table.entries.into_iter().find(|entry| entry.name.to_string() == name);
    let fault = table.faults.into_iter().find(|(of, _)| of == name).map(|(_, fault)| fault);
    found.ok_or_else(|| {
        fault.unwrap_or_else(|| TabError::NoEntry { path: path.to_owned(), name: name.to_owned() })
    })
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
    let options = options.split(',').filter(|option| !option.is_empty() && !UNDERSTOOD.contains(option));
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

    fn table(text: &str) -> Table {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tab");
        fs::write(&path, text).unwrap();
        read(&path).unwrap()
    }

    #[test]
    fn a_line_is_a_command() {
        let text = "\u{feff}# our disks\r\n\ndata nbd://h/x _netdev,nofail\r\nvault\tnbds://h/y connections=4,timeout=7,noauto # later\n";
        let entries = table(text).entries;
        let names: Vec<String> = entries.iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(
            (names, entries[0].auto, entries[1].auto),
            (vec!["data".into(), "vault".into()], true, false)
        );
        let vault = &entries[1].attach;
        assert_eq!((vault.connections, vault.timeout, vault.keep), (4, Some(7), true));
        assert_eq!((vault.uri.as_str(), vault.id.as_deref()), ("nbds://h/y", Some("vault")));
    }

    #[test]
    fn every_mistake_is_named_with_its_line_and_harms_only_it() {
        for (text, part) in [
            ("data", "line 1: a line has a name"),
            ("\na b c d", "line 2: a line has"),
            ("nbd0 nbd://h/", "cannot be the id"),
            ("\u{e4}nd nbd://h/", "cannot be the id"),
            ("a nbd://h/ nonsense", "unexpected argument '--nonsense'"),
            ("a nbd://h/ timeout=x", "invalid value 'x'"),
        ] {
            let read = table(&format!("{text}\nfine nbd://h/\n"));
            let said: Vec<String> = read.faults.iter().map(|(_, fault)| fault.to_string()).collect();
            assert!(said.len() == 1 && said[0].contains(part), "{text:?}: {said:?}");
            assert_eq!(read.entries.len(), 1, "{text:?}");
        }
        let read = table("a nbd://h/\na nbd://g/\n");
        assert!(
            read.faults[0].1.to_string().contains("line 2: there is an entry a above"),
            "{:?}",
            read.faults
        );
        assert_eq!(read.entries[0].attach.uri, "nbd://h/");
        let error = find(Path::new("/nonexistent/tab"), "a").unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/tab: No such file"), "{error}");
    }

    #[test]
    fn only_the_entry_that_is_wanted_has_to_make_sense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tab");
        fs::write(&path, "data nbd://h/x\nvault nbd://h/y tiemout=3\n").unwrap();
        assert_eq!(find(&path, "data").unwrap().attach.uri, "nbd://h/x");
        let error = find(&path, "vault").unwrap_err().to_string();
        assert!(error.contains("line 2: unexpected argument '--tiemout'"), "{error}");
        assert!(find(&path, "other").unwrap_err().to_string().contains("no entry \"other\""));
    }
}
