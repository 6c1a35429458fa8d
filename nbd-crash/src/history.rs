//! A recording in memory: everything that happened, in order, with requests and answers brought together.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use common::proto::{CommandFlags, CommandType};
use flate2::bufread::GzDecoder;
use recording::{Header, Reader, Record, What};

use crate::image::{SECTOR, sum};

/// All that was recorded.
pub struct History {
    /// What was recorded.
    pub header: Header,
    /// What happened, in order. A time is an index into it: the events before it have happened.
    pub events: Vec<Event>,
    /// Requests that change something, in the order of receipt.
    pub writes: Vec<Write>,
    /// Requests that make it durable.
    pub flushes: Vec<Flush>,
    /// Whether the recorder ended in good order.
    pub whole: bool,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// Sequence number in the recording.
    pub seq: u64,
    /// Nanoseconds since the beginning.
    pub at_ns: u64,
    /// Which connection; 0 for none.
    pub connection: u16,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A write, by its index, was received.
    Write(usize),
    /// It was answered.
    WriteAnswered(usize),
    /// A flush, by its index, was received.
    Flush(usize),
    /// It was answered.
    FlushAnswered(usize),
    /// Whoever drives the clients says something.
    Mark(String),
    /// A client has chosen the export.
    Opened,
    /// Its connection has ended.
    Closed,
}

/// A request that changes something.
#[derive(Debug, Clone)]
pub struct Write {
    /// Sequence number of its receipt.
    pub seq: u64,
    /// Which connection.
    pub connection: u16,
    /// What it leaves.
    pub content: Content,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it must be durable when it is answered.
    pub fua: bool,
    /// When it was received.
    pub received: usize,
    /// When it was answered, and with which error of the protocol.
    pub answered: Option<(usize, u32)>,
    /// The sum of every sector that it covers whole; nothing if all are zero.
    pub sums: Vec<u64>,
}

/// What a write leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Vec<u8>),
    /// Zeroes.
    Zero,
    /// Whatever; it is taken for zeroes where one thing must be chosen.
    Nothing,
}

/// A request that makes others durable.
#[derive(Debug, Clone)]
pub struct Flush {
    /// Sequence number of its receipt.
    pub seq: u64,
    /// Which connection.
    pub connection: u16,
    /// When it was received.
    pub received: usize,
    /// When it was answered, and with which error of the protocol.
    pub answered: Option<(usize, u32)>,
}

impl Write {
    /// When it was answered with success.
    pub fn acknowledged(&self) -> Option<usize> {
        self.answered.filter(|(_, error)| *error == 0).map(|(at, _)| at)
    }

    /// The first byte after it.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether it covers a sector whole.
    pub fn covers(&self, sector: u64) -> bool {
        self.offset <= sector * SECTOR && self.end() >= (sector + 1) * SECTOR
    }

    /// How many sectors it touches.
    pub fn sectors(&self) -> u64 {
        if self.length == 0 { 0 } else { (self.end() - 1) / SECTOR - self.offset / SECTOR + 1 }
    }
}

impl Flush {
    /// When it was answered with success.
    pub fn acknowledged(&self) -> Option<usize> {
        self.answered.filter(|(_, error)| *error == 0).map(|(at, _)| at)
    }
}

impl History {
    /// Reads a recording, which may be compressed by gzip.
    pub fn open(path: &Path) -> anyhow::Result<History> {
        let read = || {
            let mut file = BufReader::new(File::open(path)?);
            let mut magic = [0; 2];
            let compressed = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
            file.rewind()?;
            if compressed { History::read(BufReader::new(GzDecoder::new(file))) } else { History::read(file) }
        };
        read().with_context(|| format!("{}", path.display()))
    }

    /// Reads a recording.
    pub fn read(source: impl Read) -> anyhow::Result<History> {
        let mut reader = Reader::new(source)?;
        let header = reader.header().clone();
        let mut history = History { header, events: vec![], writes: vec![], flushes: vec![], whole: false };
        let mut open = HashMap::new();
        for record in reader.by_ref() {
            history.add(record?, &mut open)?;
        }
        history.whole = reader.is_whole();
        Ok(history)
    }

    fn add(&mut self, record: Record, open: &mut HashMap<u64, Happening>) -> anyhow::Result<()> {
        let Record { seq, at_ns, connection, what } = record;
        let received = self.events.len();
        let what = match what {
            What::Request(request) if request.command == CommandType::FLUSH.0 => {
                self.flushes.push(Flush { seq, connection, received, answered: None });
                let index = self.flushes.len() - 1;
                open.insert(seq, Happening::FlushAnswered(index));
                Happening::Flush(index)
            }
            What::Request(request) => {
                let (offset, length) = (request.offset, request.length);
                ensure!(offset + length <= self.header.size, "request {seq} goes beyond the export's end");
                let content = match CommandType(request.command) {
                    CommandType::WRITE if request.data.is_empty() => Content::Zero,
                    CommandType::WRITE => Content::Data(request.data),
                    CommandType::WRITE_ZEROES => Content::Zero,
                    CommandType::TRIM => Content::Nothing,
                    other => bail!("request {seq} is {other:?}, which no recorder writes down"),
                };
                let fua = CommandFlags(request.flags).contains(CommandFlags::FUA);
                let sums = sums(&content, offset);
                let write =
                    Write { seq, connection, content, offset, length, fua, received, answered: None, sums };
                self.writes.push(write);
                let index = self.writes.len() - 1;
                open.insert(seq, Happening::WriteAnswered(index));
                Happening::Write(index)
            }
            What::Answer { request, error } => {
                let answered = open.remove(&request);
                match &answered {
                    Some(Happening::WriteAnswered(index)) => {
                        self.writes[*index].answered = Some((received, error));
                    }
                    Some(Happening::FlushAnswered(index)) => {
                        self.flushes[*index].answered = Some((received, error));
                    }
                    _ => bail!("record {seq} answers request {request}, which is not open"),
                }
                answered.expect("matched above")
            }
            What::Mark(text) => Happening::Mark(text),
            What::Opened => Happening::Opened,
            What::Closed => Happening::Closed,
            What::End => return Ok(()),
        };
        self.events.push(Event { seq, at_ns, connection, what });
        Ok(())
    }

    /// The time right after the event of that sequence number.
    pub fn after(&self, seq: u64) -> Option<usize> {
        self.events.binary_search_by_key(&seq, |event| event.seq).ok().map(|index| index + 1)
    }

    /// The write of that sequence number.
    pub fn write(&self, seq: u64) -> Option<usize> {
        self.writes.binary_search_by_key(&seq, |write| write.seq).ok()
    }

    /// The sequence number of the last event before a time.
    pub fn seq_before(&self, time: usize) -> u64 {
        time.checked_sub(1).map_or(0, |last| self.events[last].seq)
    }
}

/// Sums of the sectors that data covers whole, from the first it touches; those at its ends that it covers in part
/// have none.
fn sums(content: &Content, offset: u64) -> Vec<u64> {
    let Content::Data(data) = content else { return Vec::new() };
    let sector = usize::try_from(SECTOR).expect("a small number");
    let lead = usize::try_from(offset.next_multiple_of(SECTOR) - offset).expect("less than a sector");
    let whole = data.get(lead..).unwrap_or_default().chunks_exact(sector).map(sum);
    std::iter::repeat_n(0, usize::from(lead > 0)).chain(whole).collect()
}
