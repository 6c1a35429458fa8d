//! The operations of a workload, and their lines.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// The same as a length in memory.
pub const BLOCK_LEN: usize = 4096;
/// Blocks that a file may have: 16 MiB.
pub const BLOCKS_MAX: u64 = 4096;

/// A range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// One line. Paths are relative to the file system's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// An empty file.
    Create(String),
    /// Blocks, through the page cache.
    Write(String, Blocks),
    /// Blocks at the end.
    Append(String, u64),
    /// Blocks, past the page cache.
    DirectWrite(String, Blocks),
    /// A new name instead of the old one.
    Rename(String, String),
    /// A further name.
    Link(String, String),
    /// One name fewer.
    Unlink(String),
    /// A directory.
    MakeDirectory(String),
    /// An empty directory goes.
    RemoveDirectory(String),
    /// A length in blocks.
    Truncate(String, u64),
    /// A hole.
    Punch(String, Blocks),
    /// Unwritten blocks.
    Zero(String, Blocks),
    /// All of a file is durable.
    Fsync(String),
    /// What is needed to read its data is durable.
    Fdatasync(String),
    /// The names in a directory are durable.
    DirectorySync(String),
    /// Everything is durable.
    Sync,
    /// Blocks are taken from what is free, for nothing that is looked at.
    Fill(u64),
    /// Threads that write other files.
    Noise(u64),
    /// For whoever reads the recording.
    Mark(String),
}

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Operation> {
        let mut words = line.split_whitespace();
        let word = words.next().context("an empty line is no operation")?;
        if word == "mark" {
            return Ok(Operation::Mark(line.trim_start().trim_start_matches("mark").trim().to_owned()));
        }
        let mut path = || {
            let path = words.next().with_context(|| format!("{word} needs a path"))?;
            let safe = path.split('/').all(|part| !part.is_empty() && part != ".." && part != ".");
            ensure!(safe || path == "/", "{path:?} is no path inside the file system");
            ensure!(path.split('/').next() != Some("noise"), "the directory noise belongs to the noise");
            Ok(path.to_owned())
        };
        let operation = match word {
            "create" => Operation::Create(path()?),
            "rename" => Operation::Rename(path()?, path()?),
            "link" => Operation::Link(path()?, path()?),
            "unlink" => Operation::Unlink(path()?),
            "mkdir" => Operation::MakeDirectory(path()?),
            "rmdir" => Operation::RemoveDirectory(path()?),
            "fsync" => Operation::Fsync(path()?),
            "fdatasync" => Operation::Fdatasync(path()?),
            "dirsync" => Operation::DirectorySync(path()?),
            "sync" => Operation::Sync,
            "write" => Operation::Write(path()?, range(&mut words)?),
            "dwrite" => Operation::DirectWrite(path()?, range(&mut words)?),
            "punch" => Operation::Punch(path()?, range(&mut words)?),
            "zero" => Operation::Zero(path()?, range(&mut words)?),
            "append" => Operation::Append(path()?, number(&mut words, 1)?),
            "trunc" => Operation::Truncate(path()?, number(&mut words, 0)?),
            "fill" => Operation::Fill(number(&mut words, 1)?),
            "noise" => Operation::Noise(number(&mut words, 1)?),
            _ => bail!("there is no operation {word:?}"),
        };
        match words.next() {
            None => Ok(operation),
            Some(more) => bail!("{more:?} is too much"),
        }
    }
}

fn range<'w>(words: &mut impl Iterator<Item = &'w str>) -> anyhow::Result<Blocks> {
    let blocks = Blocks { first: number(words, 0)?, count: number(words, 1)? };
    ensure!(blocks.first + blocks.count <= BLOCKS_MAX, "a file has at most {BLOCKS_MAX} blocks");
    Ok(blocks)
}

fn number<'w>(words: &mut impl Iterator<Item = &'w str>, min: u64) -> anyhow::Result<u64> {
    let word = words.next().context("a number is missing")?;
    let number = word.parse().with_context(|| format!("{word:?} is no number"))?;
    ensure!((min..=BLOCKS_MAX).contains(&number), "{number} is not between {min} and {BLOCKS_MAX}");
    Ok(number)
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |blocks: &Blocks| format!("{} {}", blocks.first, blocks.count);
        match self {
            Operation::Create(path) => write!(f, "create {path}"),
            Operation::Write(path, blocks) => write!(f, "write {path} {}", range(blocks)),
            Operation::Append(path, count) => write!(f, "append {path} {count}"),
            Operation::DirectWrite(path, blocks) => write!(f, "dwrite {path} {}", range(blocks)),
            Operation::Rename(from, to) => write!(f, "rename {from} {to}"),
            Operation::Link(from, to) => write!(f, "link {from} {to}"),
            Operation::Unlink(path) => write!(f, "unlink {path}"),
            Operation::MakeDirectory(path) => write!(f, "mkdir {path}"),
            Operation::RemoveDirectory(path) => write!(f, "rmdir {path}"),
            Operation::Truncate(path, count) => write!(f, "trunc {path} {count}"),
            Operation::Punch(path, blocks) => write!(f, "punch {path} {}", range(blocks)),
            Operation::Zero(path, blocks) => write!(f, "zero {path} {}", range(blocks)),
            Operation::Fsync(path) => write!(f, "fsync {path}"),
            Operation::Fdatasync(path) => write!(f, "fdatasync {path}"),
            Operation::DirectorySync(path) => write!(f, "dirsync {path}"),
            Operation::Sync => f.write_str("sync"),
            Operation::Fill(count) => write!(f, "fill {count}"),
            Operation::Noise(count) => write!(f, "noise {count}"),
            Operation::Mark(text) => write!(f, "mark {text}"),
        }
    }
}

/// Reads a workload; an error names the line.
pub fn parse(text: &str) -> anyhow::Result<Vec<Operation>> {
    let lines =
        text.lines().enumerate().map(|(number, line)| (number + 1, line.split('#').next().unwrap_or("")));
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| line.parse().with_context(|| format!("line {number}: {line:?}"))).collect()
}
