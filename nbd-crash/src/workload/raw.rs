//! Workloads without a file system: requests to an export, straight over NBD, by several connections at once.
//!
//! | line | request |
//! |---|---|
//! | `W BLOCK COUNT`, `WF …` | WRITE of blocks of 4 KiB, with FUA |
//! | `Z BLOCK COUNT`, `ZF …` | WRITE_ZEROES, with FUA |
//! | `T BLOCK COUNT`, `TF …` | TRIM, with FUA |
//! | `F` | FLUSH |

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;
use std::thread;

use anyhow::{Context, bail, ensure};
use common::command::RequestHeader;
use common::proto::{CommandFlags, CommandType, SIMPLE_REPLY_HEADER_LEN, TransmissionFlags, WireError};
use common::reply::SimpleReply;
use common::uri::Uri;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::operation::{BLOCK, BLOCKS_MAX};
use super::sector::{Origin, SECTOR};
use crate::endpoint::Stream;

/// Connections at most.
pub const CONNECTIONS_MAX: usize = 16;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    command: CommandType,
    fua: bool,
    first: u64,
    count: u64,
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Line> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (word, range) = words.split_first().context("an empty line is no request")?;
        let command = match word.trim_end_matches('F') {
            "W" => CommandType::WRITE,
            "Z" => CommandType::WRITE_ZEROES,
            "T" => CommandType::TRIM,
            "" => CommandType::FLUSH,
            _ => bail!("there is no request {word:?}"),
        };
        if command == CommandType::FLUSH {
            ensure!(*word == "F" && range.is_empty(), "a flush is a line F");
            return Ok(Line { command, fua: false, first: 0, count: 0 });
        }
        let [first, count] = range else { bail!("{word} needs a block and a count") };
        let (first, count) = (first.parse()?, count.parse()?);
        ensure!((1..=BLOCKS_MAX).contains(&count), "{count} blocks are none, or too many");
        Ok(Line { command, fua: word.len() > 1, first, count })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.command {
            CommandType::WRITE => "W",
            CommandType::WRITE_ZEROES => "Z",
            CommandType::TRIM => "T",
            _ => return f.write_str("F"),
        };
        let fua = if self.fua { "F" } else { "" };
        write!(f, "{word}{fua} {} {}", self.first, self.count)
    }
}

/// A workload of `count` requests to the first `blocks` blocks; half of them write, a sixth flushes.
pub fn random(count: usize, blocks: u64, seed: u64) -> Vec<Line> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut line = || {
        let first = random.random_range(0..blocks);
        let count = random.random_range(1..=4).min(blocks - first);
        let (command, fua) = match random.random_range(0..12) {
            0..5 => (CommandType::WRITE, false),
            5..8 => (CommandType::WRITE, true),
            8 => (CommandType::WRITE_ZEROES, false),
            9 => (CommandType::WRITE_ZEROES, true),
            _ => return Line { command: CommandType::FLUSH, fua: false, first: 0, count: 0 },
        };
        Line { command, fua, first, count }
    };
    (0..count).map(|_| line()).collect()
}

/// Sends the requests to an export, in turn by each of several connections, each of which waits for its answers.
///
/// # Errors
/// Where the server fails a request or goes away; what was sent until then was sent.
pub fn run(lines: &[Line], uri: &Uri, connections: usize) -> anyhow::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = Stream::dial(uri)?;
        let export = stream.choose(&uri.export)?;
        ensure!(
            connections == 1 || export.flags.contains(TransmissionFlags::CAN_MULTI_CONN),
            "the server does not promise that several connections see the same (CAN_MULTI_CONN)"
        );
        check(lines, &export)?;
        streams.push(stream);
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .zip(streams)
            .map(|(turn, stream)| {
                let own = lines.iter().enumerate().skip(turn).step_by(connections);
                scope.spawn(move || converse(stream, own))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a connection panicked"),
        })
    })
}

/// Fails if the export lacks what the workload asks for.
fn check(lines: &[Line], export: &common::handshake::Export) -> anyhow::Result<()> {
    for line in lines {
        ensure!((line.first + line.count) * BLOCK <= export.size, "{line} goes beyond the export's end");
        let needed = match line.command {
            CommandType::FLUSH => TransmissionFlags::SEND_FLUSH,
            CommandType::TRIM => TransmissionFlags::SEND_TRIM,
            CommandType::WRITE_ZEROES => TransmissionFlags::SEND_WRITE_ZEROES,
            _ => TransmissionFlags::NONE,
        };
        let needed = needed | if line.fua { TransmissionFlags::SEND_FUA } else { TransmissionFlags::NONE };
        ensure!(export.flags.contains(needed), "the server does not offer what {line} needs");
    }
    Ok(())
}

fn converse<'l>(mut stream: Stream, lines: impl Iterator<Item = (usize, &'l Line)>) -> anyhow::Result<()> {
    for (number, line) in lines {
        let cookie = number as u64 + 1;
        let header = RequestHeader {
            flags: if line.fua { CommandFlags::FUA } else { CommandFlags::NONE },
            command: line.command,
            cookie,
            offset: line.first * BLOCK,
            length: line.count * BLOCK,
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        if line.command == CommandType::WRITE {
            for sector in 0..line.count * 8 {
                let block = u32::try_from(line.first + sector / 8)?;
                let (sector, version) = (u32::try_from(sector % 8)?, u32::try_from(cookie)?);
                bytes.extend_from_slice(&Origin { file: 0, block, sector, version }.bytes());
            }
            debug_assert_eq!(bytes.len() as u64 % SECTOR as u64, 28);
        }
        stream.write_all(&bytes)?;
        let mut reply = [0; SIMPLE_REPLY_HEADER_LEN];
        stream.read_exact(&mut reply).context("the server hung up")?;
        let reply = SimpleReply::decode(&reply)?;
        ensure!(reply.cookie == cookie, "the server answers what nobody asked");
        ensure!(reply.error == WireError::OK, "{line} failed: {:?}", reply.error);
    }
    let goodbye = RequestHeader {
        flags: CommandFlags::NONE,
        command: CommandType::DISC,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    let mut bytes = Vec::new();
    goodbye.encode(&mut bytes);
    Ok(stream.write_all(&bytes)?)
}
