//! A log becomes a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};

use anyhow::{Context, bail, ensure};
use common::proto::{CommandFlags, CommandType, TransmissionFlags};
use recording::{Header, Recorder, Request, What};

use super::{
    CLOSED, DISCARD, END, EXTENSION, EXTENSION_AT, EXTENSION_LEN, Extension, FLUSH, FUA, MAGIC, MARK,
    MARK_AT, OPENED, SECTOR, VERSION, field, u64_at,
};

/// Longest entry of a log that is read: far above any bio.
const ENTRY_MAX: u64 = 64 << 20;

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
