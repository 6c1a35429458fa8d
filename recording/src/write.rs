//! Writing a recording.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::{HEAD_LEN, HEADER_LEN, Header, MAGIC, NAME_MAX, Request, UNIT, What};

/// Appends to a recording, from any thread.
///
/// Nothing is held back: when a method returns, the host has the record, and a recorder that is killed loses nothing.
/// After an error the recording ends where it is, and what is recorded later goes nowhere.
pub struct Recorder {
    state: Mutex<State>,
    connections: AtomicU16,
    began: Instant,
}

struct State {
    file: File,
    seq: u64,
    failed: bool,
    scratch: Vec<u8>,
}

impl Recorder {
    /// Writes the header of a recording that begins now into an empty file.
    ///
    /// # Errors
    /// The file's.
    pub fn begin(file: File, header: Header) -> io::Result<Recorder> {
        // Read together: recordings of the same host are compared by their times.
        let (began, now) = (Instant::now(), SystemTime::now());
        let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_ns = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        Recorder::write_header(file, &Header { began_ns, ..header }, began)
    }

    /// Writes the header of a recording of what happened elsewhere into an empty file.
    ///
    /// # Errors
    /// The file's.
    pub fn again(file: File, header: &Header) -> io::Result<Recorder> {
        Recorder::write_header(file, header, Instant::now())
    }

    fn write_header(mut file: File, header: &Header, began: Instant) -> io::Result<Recorder> {
        file.write_all(&encode_header(header))?;
        let state = State { file, seq: 0, failed: false, scratch: Vec::new() };
        Ok(Recorder { state: Mutex::new(state), connections: AtomicU16::new(0), began })
    }

    /// Appends a record; gives its sequence number.
    ///
    /// # Errors
    /// The file's, once.
    pub fn record(&self, connection: u16, what: &What) -> io::Result<u64> {
        self.put(connection, what, None)
    }

    /// Appends a record of something that happened elsewhere, nanoseconds after the beginning.
    ///
    /// # Errors
    /// The file's, once.
    pub fn record_at(&self, connection: u16, what: &What, at_ns: u64) -> io::Result<u64> {
        self.put(connection, what, Some(at_ns))
    }

    fn put(&self, connection: u16, what: &What, at_ns: Option<u64>) -> io::Result<u64> {
        match what {
            What::Request(request) => {
                self.append(connection, at_ns, |out| put_request(out, request, &request.data))
            }
            _ => self.append(connection, at_ns, |out| put(out, what)),
        }
    }

    /// Appends a request whose data is elsewhere; gives its sequence number.
    ///
    /// # Errors
    /// The file's, once.
    pub fn request(&self, connection: u16, request: &Request, data: &[u8]) -> io::Result<u64> {
        self.append(connection, None, |out| put_request(out, request, data))
    }

    /// Appends a record whose payload is appended, and whose kind is given, by `put`.
    fn append(
        &self,
        connection: u16,
        at_ns: Option<u64>,
        put: impl FnOnce(&mut Vec<u8>) -> u8,
    ) -> io::Result<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        state.seq += 1;
        if state.failed {
            return Ok(state.seq);
        }
        let out = &mut state.scratch;
        out.clear();
        out.resize(HEAD_LEN, 0);
        let kind = put(out);
        let payload = u32::try_from(out.len() - HEAD_LEN).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Taken under the lock: later records have later times.
        let now = || u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let at_ns = at_ns.unwrap_or_else(now);
        out[0] = kind;
        out[2..4].copy_from_slice(&connection.to_le_bytes());
        out[4..8].copy_from_slice(&payload.to_le_bytes());
        out[8..16].copy_from_slice(&state.seq.to_le_bytes());
        out[16..24].copy_from_slice(&at_ns.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&out[..24]), &out[HEAD_LEN..]);
        out[24..28].copy_from_slice(&sum.to_le_bytes());
        state.file.write_all(out).inspect_err(|_| state.failed = true)?;
        Ok(state.seq)
    }

    /// A new connection's share in the recording.
    ///
    /// # Errors
    /// The file's, once.
    pub fn connect(self: &Arc<Self>) -> io::Result<Tap> {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.record(connection, &What::Opened)?;
        Ok(Tap { recorder: self.clone(), connection })
    }
}

/// One connection's share in a recording, until it is dropped.
pub struct Tap {
    recorder: Arc<Recorder>,
    connection: u16,
}

impl Tap {
    /// Records a request that was received whole; gives its sequence number.
    ///
    /// # Errors
    /// The file's, once.
    pub fn received(&self, request: &Request, data: &[u8]) -> io::Result<u64> {
        self.recorder.request(self.connection, request, data)
    }

    /// Records the answer to a request, which must not have been sent yet.
    ///
    /// # Errors
    /// The file's, once.
    pub fn answers(&self, request: u64, error: u32) -> io::Result<()> {
        self.recorder.record(self.connection, &What::Answer { request, error }).map(drop)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Whoever reads the recording learns of a failed file by its missing end.
        let _ = self.recorder.record(self.connection, &What::Closed);
    }
}

fn put_request(out: &mut Vec<u8>, request: &Request, data: &[u8]) -> u8 {
    for number in [request.cookie, request.offset, request.length] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&request.command.to_le_bytes());
    out.extend_from_slice(&request.flags.to_le_bytes());
    if data.iter().any(|byte| *byte != 0) {
        out.extend_from_slice(data);
    }
    1
}

fn put(out: &mut Vec<u8>, what: &What) -> u8 {
    match what {
        What::Request(_) => unreachable!("requests have a function of their own"),
        What::Answer { request, error } => {
            out.extend_from_slice(&request.to_le_bytes());
            out.extend_from_slice(&error.to_le_bytes());
            2
        }
        What::Mark(text) => {
            out.extend_from_slice(text.as_bytes());
            3
        }
        What::Opened => {
            out.push(0);
            4
        }
        What::Closed => {
            out.push(1);
            4
        }
        What::End => 7,
    }
}

fn encode_header(header: &Header) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    let name = &header.name.as_bytes()[..header.name.floor_char_boundary(NAME_MAX)];
    let len = u16::try_from(name.len()).expect("the name was shortened");
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&u32::try_from(HEADER_LEN).expect("a small number").to_le_bytes());
    out[12..16].copy_from_slice(&UNIT.to_le_bytes());
    out[16..24].copy_from_slice(&header.size.to_le_bytes());
    out[24..26].copy_from_slice(&header.flags.to_le_bytes());
    out[32..40].copy_from_slice(&header.began_ns.to_le_bytes());
    out[96..98].copy_from_slice(&len.to_le_bytes());
    out[98..98 + name.len()].copy_from_slice(name);
    let sum = crc32c::crc32c(&out[..HEADER_LEN - 4]);
    out[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
    out
}
