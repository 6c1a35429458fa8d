//! Logs of the kernel's dm-log-writes (drivers/md/dm-log-writes.c, Documentation/admin-guide/device-mapper/log-writes):
//! recordings are written as such logs for the tools that read them, and logs that the kernel made are read.
//!
//! A log has the data of writes in the order in which they became durable: those that a FLUSH covers stand before it,
//! one with FUA where it was answered. What was never made durable follows at the end, after the kernel's own habit.
//! Readers look at the first 32 bytes of an entry; behind them, at byte 40, stands what the format has no place for:
//! `NBDX`, a version, the command, its flags, its connection, its error, when it was received and answered, by sequence
//! number and by time. From that a recording is had back as it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};

use anyhow::{Context, bail, ensure};
use common::proto::{CommandFlags, CommandType, TransmissionFlags, WireError};
use recording::{Header, Reader, Record, Recorder, Request, What};

/// The log begins with it.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bytes of a sector: the unit of places and lengths, and the room of an entry's head.
const SECTOR: usize = 512;
/// Flags of an entry.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Where a mark's text stands.
const MARK_AT: usize = 32;
/// Where our own fields stand.
const EXTENSION_AT: usize = 40;
const EXTENSION: &[u8; 4] = b"NBDX";
const EXTENSION_LEN: usize = 64;
/// What an extension says a mark of ours stands for.
const OPENED: u16 = 0xfffe;
const CLOSED: u16 = 0xffff;
/// The mark with which the kernel ends its logs.
const END: &str = "dm-log-writes-end";
/// Longest entry of a log that is read: far above any bio.
const ENTRY_MAX: u64 = 64 << 20;

/// Our fields of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Extension {
    connection: u16,
    command: u16,
    flags: u16,
    error: u32,
    /// Sequence numbers; 0 for never.
    received: u64,
    answered: u64,
    received_ns: u64,
    answered_ns: u64,
    cookie: u64,
}

impl Extension {
    fn put(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(EXTENSION);
        out[4..6].copy_from_slice(&1_u16.to_le_bytes());
        for (at, number) in [(6, self.connection), (8, self.command), (10, self.flags)] {
            out[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        out[12..16].copy_from_slice(&self.error.to_le_bytes());
        let numbers = [self.received, self.answered, self.received_ns, self.answered_ns, self.cookie];
        for (place, number) in out[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Option<Extension> {
        let (u16_at, u64_at) =
            (|at| u16::from_le_bytes(field(bytes, at)), |at| u64::from_le_bytes(field(bytes, at)));
        (bytes.starts_with(EXTENSION) && u16_at(4) == 1).then(|| Extension {
            connection: u16_at(6),
            command: u16_at(8),
            flags: u16_at(10),
            error: u32::from_le_bytes(field(bytes, 12)),
            received: u64_at(16),
            answered: u64_at(24),
            received_ns: u64_at(32),
            answered_ns: u64_at(40),
            cookie: u64_at(48),
        })
    }
}

/// A request and its answer.
struct Exchange {
    request: Request,
    extension: Extension,
}

/// Writes a recording as a log.
pub fn export(mut recording: Reader<impl Read>, to: File) -> anyhow::Result<u64> {
    let header = recording.header().clone();
    let mut log = Log { out: BufWriter::new(to), entries: 0 };
    log.superblock(&header, 0)?;
    let mut open: BTreeMap<u64, Exchange> = BTreeMap::new();
    // Answered and not durable, in the order of answers, and what each open flush has taken of it.
    let mut unflushed: Vec<Exchange> = Vec::new();
    let mut taken: BTreeMap<u64, Vec<Exchange>> = BTreeMap::new();
    for record in recording.by_ref() {
        let Record { seq, at_ns, connection, what } = record?;
        let extension = Extension { connection, received: seq, received_ns: at_ns, ..Extension::default() };
        match what {
            What::Request(request) => {
                if request.command == CommandType::FLUSH.0 {
                    taken.insert(seq, std::mem::take(&mut unflushed));
                }
                let (command, flags, cookie) = (request.command, request.flags, request.cookie);
                let extension = Extension { command, flags, cookie, ..extension };
                open.insert(seq, Exchange { request, extension });
            }
            What::Answer { request, error } => {
                let mut exchange = open.remove(&request).context("an answer without request")?;
                let extension = &mut exchange.extension;
                (extension.error, extension.answered, extension.answered_ns) = (error, seq, at_ns);
                let durable = CommandFlags(exchange.request.flags).contains(CommandFlags::FUA);
                if exchange.request.command == CommandType::FLUSH.0 {
                    let covered = taken.remove(&request).unwrap_or_default();
                    if error == WireError::OK.0 {
                        covered.iter().try_for_each(|exchange| log.exchange(exchange))?;
                        log.exchange(&exchange)?;
                    } else {
                        unflushed.splice(..0, covered);
                        unflushed.push(exchange);
                    }
                } else if durable && error == WireError::OK.0 {
                    log.exchange(&exchange)?;
                } else {
                    unflushed.push(exchange);
                }
            }
            What::Mark(text) => log.mark(&text, extension)?,
            What::Opened => log.mark("nbd connection opened", Extension { command: OPENED, ..extension })?,
            What::Closed => log.mark("nbd connection closed", Extension { command: CLOSED, ..extension })?,
            What::End => {}
        }
    }
    let left = taken.into_values().flatten().chain(unflushed).chain(open.into_values());
    left.collect::<Vec<_>>().iter().try_for_each(|exchange| log.exchange(exchange))?;
    if recording.is_whole() {
        log.mark(END, Extension::default())?;
    }
    log.finish(&header)
}

struct Log {
    out: BufWriter<File>,
    entries: u64,
}

impl Log {
    fn superblock(&mut self, header: &Header, entries: u64) -> anyhow::Result<()> {
        let mut sector = [0; SECTOR];
        for (place, number) in sector.chunks_exact_mut(8).zip([MAGIC, VERSION, entries]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        sector[24..28].copy_from_slice(&u32::try_from(SECTOR)?.to_le_bytes());
        let name = &header.name.as_bytes()[..header.name.floor_char_boundary(255)];
        let own = &mut sector[EXTENSION_AT..];
        own[..4].copy_from_slice(EXTENSION);
        own[8..16].copy_from_slice(&header.size.to_le_bytes());
        own[16..24].copy_from_slice(&header.began_ns.to_le_bytes());
        own[24..26].copy_from_slice(&header.flags.to_le_bytes());
        own[26..28].copy_from_slice(&u16::try_from(name.len())?.to_le_bytes());
        own[28..28 + name.len()].copy_from_slice(name);
        Ok(self.out.write_all(&sector)?)
    }

    fn exchange(&mut self, exchange: &Exchange) -> anyhow::Result<()> {
        let Exchange { request, extension } = exchange;
        let Request { offset, length, command, data, .. } = request;
        let sector = SECTOR as u64;
        ensure!(
            offset.is_multiple_of(sector) && length.is_multiple_of(sector),
            "request {} is not aligned to {SECTOR} bytes, and dm-log-writes knows no other",
            extension.received
        );
        let durable = CommandFlags(request.flags).contains(CommandFlags::FUA);
        let flags = match CommandType(*command) {
            CommandType::FLUSH => FLUSH,
            CommandType::TRIM => DISCARD,
            _ => 0,
        } | if durable { FUA } else { 0 };
        if flags == 0 && *length == 0 {
            // Its readers take nothing for something.
            return Ok(());
        }
        self.entry(offset / sector, length / sector, flags, "", *extension)?;
        if matches!(CommandType(*command), CommandType::WRITE | CommandType::WRITE_ZEROES) {
            self.out.write_all(data)?;
            std::io::copy(&mut std::io::repeat(0).take(length - data.len() as u64), &mut self.out)?;
        }
        Ok(())
    }

    fn mark(&mut self, text: &str, extension: Extension) -> anyhow::Result<()> {
        self.entry(0, 0, MARK, text, extension)
    }

    fn entry(
        &mut self,
        sector: u64,
        count: u64,
        flags: u64,
        text: &str,
        own: Extension,
    ) -> anyhow::Result<()> {
        let mut head = [0; SECTOR];
        // A mark's text has the place of our fields, which follow it there.
        let room = SECTOR - MARK_AT - 1 - EXTENSION_LEN;
        ensure!(
            text.len() <= room,
            "a mark of {} bytes is longer than the format's room of {room}",
            text.len()
        );
        let text = text.as_bytes();
        let at = if flags == MARK { SECTOR - EXTENSION_LEN } else { EXTENSION_AT };
        let length = if flags == MARK { text.len() as u64 } else { 0 };
        for (place, number) in head.chunks_exact_mut(8).zip([sector, count, flags, length]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        head[MARK_AT..MARK_AT + text.len()].copy_from_slice(text);
        own.put(&mut head[at..at + EXTENSION_LEN - 8]);
        self.entries += 1;
        Ok(self.out.write_all(&head)?)
    }

    fn finish(mut self, header: &Header) -> anyhow::Result<u64> {
        use std::io::{Seek, SeekFrom};
        self.out.seek(SeekFrom::Start(0))?;
        self.superblock(header, self.entries)?;
        self.out.into_inner().context("cannot write the log")?.sync_all()?;
        Ok(self.entries)
    }
}

/// Reads a log, of ours or of the kernel's, into a recording. `size` is that of the device, which the kernel's do not
/// tell.
pub fn import(mut log: impl Read, size: Option<u64>, to: File) -> anyhow::Result<u64> {
    let mut sector = vec![0; SECTOR];
    log.read_exact(&mut sector).context("this is no log of dm-log-writes: it is too short")?;
    ensure!(u64_at(&sector, 0) == MAGIC, "this is no log of dm-log-writes: it begins otherwise");
    ensure!(u64_at(&sector, 8) == VERSION, "the log has version {}, not {VERSION}", u64_at(&sector, 8));
    let unit = u32::from_le_bytes(field(&sector, 24));
    ensure!(unit.is_power_of_two() && (512..=65_536).contains(&unit), "its sectors have {unit} bytes");
    let entries = u64_at(&sector, 16);
    let own = own_header(&sector)?;
    let is_ours = own.is_some();
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA;
    let header = match (own, size) {
        (Some(own), _) => own,
        (None, Some(size)) => Header { size, flags: flags.0, began_ns: 0, name: String::new() },
        (None, None) => bail!("a log of the kernel's does not say how large the device is; give --size"),
    };
    log.by_ref().take(u64::from(unit) - SECTOR as u64).read_to_end(&mut Vec::new())?;
    let mut events = Events { by_seq: BTreeMap::new(), next: 1, is_ours };
    let mut whole = false;
    for number in 0..entries {
        let mut head = vec![0; unit as usize];
        match log.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let (first, count, flags) = (u64_at(&head, 0), u64_at(&head, 8), u64_at(&head, 16));
        let length =
            count.checked_mul(unit.into()).filter(|length| flags & DISCARD != 0 || *length <= ENTRY_MAX);
        let length = length.with_context(|| format!("entry {number} has {count} sectors"))?;
        let offset = first.checked_mul(unit.into()).context("an entry is beyond all devices")?;
        if flags & MARK != 0 {
            whole |= events.mark(&head)?;
            continue;
        }
        let mut data = Vec::new();
        if flags & DISCARD == 0 {
            log.by_ref().take(length).read_to_end(&mut data)?;
            if data.len() as u64 != length {
                break;
            }
        }
        events.exchange(&head, flags, offset, length, data);
    }
    events.write(&header, whole, to)
}

/// What happened, put in order again.
struct Events {
    by_seq: BTreeMap<u64, (u64, u16, What)>,
    next: u64,
    is_ours: bool,
}

impl Events {
    /// Whether it is the mark of the end.
    fn mark(&mut self, head: &[u8]) -> anyhow::Result<bool> {
        let text = &head[MARK_AT..SECTOR];
        let len = usize::try_from(u64_at(head, 24)).unwrap_or(usize::MAX).min(text.len());
        let text = &text[..len];
        let text = str::from_utf8(text).context("a mark is no text")?.trim_end_matches('\0').to_owned();
        if text == END {
            return Ok(true);
        }
        let own = self.is_ours.then(|| Extension::read(&head[SECTOR - EXTENSION_LEN..])).flatten();
        let what = match own.map(|own| own.command) {
            Some(OPENED) => What::Opened,
            Some(CLOSED) => What::Closed,
            _ => What::Mark(text),
        };
        let own = own.unwrap_or_default();
        self.put(own.received, own.received_ns, own.connection, what);
        Ok(false)
    }

    fn exchange(&mut self, head: &[u8], flags: u64, offset: u64, length: u64, data: Vec<u8>) {
        let own = self.is_ours.then(|| Extension::read(&head[EXTENSION_AT..])).flatten();
        let data = if data.iter().all(|byte| *byte == 0) { Vec::new() } else { data };
        if let Some(own) = own {
            let Extension { connection, command, flags, error, received, answered, .. } = own;
            let (length, data) =
                if command == CommandType::FLUSH.0 { (0, Vec::new()) } else { (length, data) };
            let data = if command == CommandType::WRITE.0 { data } else { Vec::new() };
            let request = Request { cookie: own.cookie, offset, length, command, flags, data };
            self.put(received, own.received_ns, connection, What::Request(request));
            if answered > 0 {
                let answer = What::Answer { request: received, error };
                self.put(answered, own.answered_ns, connection, answer);
            }
            return;
        }
        // The kernel's order is that of durability: each is taken to be answered at once.
        if flags & FLUSH != 0 {
            self.both(CommandType::FLUSH, CommandFlags::NONE, 0, 0, Vec::new());
        }
        let durable = if flags & FUA != 0 { CommandFlags::FUA } else { CommandFlags::NONE };
        let command = if flags & DISCARD != 0 { CommandType::TRIM } else { CommandType::WRITE };
        if length > 0 {
            self.both(command, durable, offset, length, data);
        }
    }

    fn both(&mut self, command: CommandType, flags: CommandFlags, offset: u64, length: u64, data: Vec<u8>) {
        let request = Request { cookie: self.next, offset, length, command: command.0, flags: flags.0, data };
        let received = self.next;
        self.put(0, 0, 1, What::Request(request));
        self.put(0, 0, 1, What::Answer { request: received, error: 0 });
    }

    /// Puts something at its number, or at the next.
    fn put(&mut self, seq: u64, at_ns: u64, connection: u16, what: What) {
        let seq = if seq > 0 { seq } else { self.next };
        self.next = self.next.max(seq) + 1;
        self.by_seq.insert(seq, (at_ns, connection, what));
    }

    fn write(self, header: &Header, whole: bool, to: File) -> anyhow::Result<u64> {
        let recorder = Recorder::again(to, header)?;
        for (seq, (at_ns, connection, what)) in self.by_seq {
            let given = recorder.record_at(connection, &what, at_ns)?;
            ensure!(given == seq, "the log lacks record {given}");
        }
        if whole {
            recorder.record(0, &What::End)?;
        }
        Ok(self.next - 1)
    }
}

fn own_header(sector: &[u8]) -> anyhow::Result<Option<Header>> {
    let own = &sector[EXTENSION_AT..];
    if !own.starts_with(EXTENSION) {
        return Ok(None);
    }
    let len = usize::from(u16::from_le_bytes(field(own, 26)));
    let name = own.get(28..28 + len).context("the log's first sector is damaged")?;
    Ok(Some(Header {
        size: u64_at(own, 8),
        began_ns: u64_at(own, 16),
        flags: u16::from_le_bytes(field(own, 24)),
        name: str::from_utf8(name).context("the export's name is no text")?.to_owned(),
    }))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a sector has room for all fields")
}
