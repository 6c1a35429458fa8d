//! A recording becomes a log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};

use anyhow::{Context, ensure};
use common::proto::{CommandFlags, CommandType, WireError};
use recording::{Header, Reader, Record, Request, What};

use super::{
    CLOSED, DISCARD, END, EXTENSION, EXTENSION_AT, EXTENSION_LEN, Extension, FLUSH, FUA, MAGIC, MARK,
    MARK_AT, OPENED, SECTOR, VERSION,
};

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
