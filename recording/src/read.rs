//! Reading a recording, by whomever it was written: nothing in it is believed before it is checked.

use std::io::{self, ErrorKind, Read};

use crate::{HEAD_LEN, HEADER_LEN, Header, MAGIC, PAYLOAD_MAX, REQUEST_LEN, Record, Request, What};

/// Gives the records of a recording, one after the other.
pub struct Reader<R> {
    source: R,
    header: Header,
    /// Where the next record begins.
    at: u64,
    seq: u64,
    done: bool,
    whole: bool,
}

/// Why something is no recording, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file's.
    #[error("cannot read the recording: {0}")]
    Io(#[from] io::Error),
    /// It does not begin like one.
    #[error("this is no recording: it does not begin with NBDREC")]
    NoRecording,
    /// Its header is damaged.
    #[error("the recording's header is damaged")]
    Header,
    /// A record is damaged, and what follows cannot be found.
    #[error("the recording is damaged at byte {at}: {what}")]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(mut source: R) -> Result<Reader<R>, ReadError> {
        let mut header = vec![0; HEADER_LEN];
        match source.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(ReadError::NoRecording),
            read => read?,
        }
        if !header.starts_with(MAGIC) {
            return Err(ReadError::NoRecording);
        }
        let header = decode_header(&header).ok_or(ReadError::Header)?;
        Ok(Reader { source, header, at: HEADER_LEN as u64, seq: 0, done: false, whole: false })
    }

    /// What was recorded.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// After the last record: whether the recorder ended in good order.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        let mut head = [0; HEAD_LEN];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let at = self.at;
        let damaged = |what| ReadError::Damaged { at, what };
        // A disk that holds a recording has zeroes behind it.
        if head == [0; HEAD_LEN] {
            return Ok(None);
        }
        let len = u32::from_le_bytes(field(&head, 4)) as usize;
        if len > PAYLOAD_MAX {
            return Err(damaged("its length is impossible"));
        }
        let mut payload = vec![0; len];
        if !self.fill(&mut payload)? {
            return Ok(None);
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..24]), &payload);
        if sum != u32::from_le_bytes(field(&head, 24)) {
            return Err(damaged("its checksum is wrong"));
        }
        let seq = u64::from_le_bytes(field(&head, 8));
        if seq != self.seq + 1 {
            return Err(damaged("its sequence number is not the next"));
        }
        let what = decode(head[0], payload).ok_or_else(|| damaged("its content makes no sense"))?;
        (self.seq, self.at) = (seq, at + (HEAD_LEN + len) as u64);
        self.whole = what == What::End;
        let connection = u16::from_le_bytes(field(&head, 2));
        Ok(Some(Record { seq, at_ns: u64::from_le_bytes(field(&head, 16)), connection, what }))
    }

    /// Whether there was enough; what is short is the end.
    fn fill(&mut self, buf: &mut [u8]) -> Result<bool, ReadError> {
        match self.source.read_exact(buf) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_record();
        self.done = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

fn decode(kind: u8, payload: Vec<u8>) -> Option<What> {
    match kind {
        1 => request(payload).map(What::Request),
        2 if payload.len() == 12 => Some(What::Answer {
            request: u64::from_le_bytes(field(&payload, 0)),
            error: u32::from_le_bytes(field(&payload, 8)),
        }),
        3 => String::from_utf8(payload).ok().map(What::Mark),
        4 if payload == [0] => Some(What::Opened),
        4 if payload == [1] => Some(What::Closed),
        7 if payload.is_empty() => Some(What::End),
        _ => None,
    }
}

fn request(mut payload: Vec<u8>) -> Option<Request> {
    if payload.len() < REQUEST_LEN {
        return None;
    }
    let data = payload.split_off(REQUEST_LEN);
    let length = u64::from_le_bytes(field(&payload, 16));
    let request = Request {
        cookie: u64::from_le_bytes(field(&payload, 0)),
        offset: u64::from_le_bytes(field(&payload, 8)),
        length,
        command: u16::from_le_bytes(field(&payload, 24)),
        flags: u16::from_le_bytes(field(&payload, 26)),
        data,
    };
    let fits = request.data.is_empty() || request.data.len() as u64 == length;
    (fits && request.offset.checked_add(length).is_some()).then_some(request)
}

fn decode_header(bytes: &[u8]) -> Option<Header> {
    let sum = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
    let len: usize = u16::from_le_bytes(field(bytes, 96)).into();
    let right = sum == u32::from_le_bytes(field(bytes, HEADER_LEN - 4));
    let name = bytes[..HEADER_LEN - 4].get(98..98 + len)?;
    right.then_some(Header {
        size: u64::from_le_bytes(field(bytes, 16)),
        flags: u16::from_le_bytes(field(bytes, 24)),
        began_ns: u64::from_le_bytes(field(bytes, 32)),
        name: str::from_utf8(name).ok()?.to_owned(),
    })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("lengths are checked before fields are read")
}
