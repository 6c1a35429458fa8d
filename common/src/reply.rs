//! Replies: simple ones, sixteen bytes and then the data of a successful READ; and chunks of
//! structured ones, twenty bytes, or under extended headers 32, and then what the kind of chunk says.

use crate::Violation;
use crate::proto::{
    CHUNK_HEADER_LEN, ChunkFlags, ChunkType, EXTENDED_HEADER_LEN, EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_HEADER_LEN, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, WireError,
};
use crate::wire::{self, Cursor, Malformed, Put};

/// Why a field of a header can be read: its bytes are counted.
const WHOLE: &str = "a header has all its fields";

/// The header of a simple reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// [`WireError::OK`] or what went wrong; data follows only an OK.
    pub error: WireError,
    /// The cookie of the request that is answered.
    pub cookie: u64,
}

impl SimpleReply {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SIMPLE_REPLY_HEADER_LEN] {
        let mut bytes = [0; SIMPLE_REPLY_HEADER_LEN];
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_HEADER_LEN]) -> Result<SimpleReply, Violation> {
        let mut cursor = Cursor::new(bytes);
        let magic = cursor.u32().expect(WHOLE);
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(Violation::Magic { expected: "a simple reply", found: magic.into() });
        }
        let error = WireError(cursor.u32().expect(WHOLE));
        Ok(SimpleReply { error, cookie: cursor.u64().expect(WHOLE) })
    }
}

/// The header of a structured reply's chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the last one.
    pub flags: ChunkFlags,
    /// What follows.
    pub kind: ChunkType,
    /// The cookie of the request that is answered.
    pub cookie: u64,
    /// Bytes that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; CHUNK_HEADER_LEN] {
        let mut bytes = [0; CHUNK_HEADER_LEN];
        self.fill(&mut bytes, STRUCTURED_REPLY_MAGIC);
        bytes[16..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// The header's bytes under extended headers, with the offset of the request that is answered.
    #[must_use]
    pub fn encode_extended(&self, offset: u64) -> [u8; EXTENDED_HEADER_LEN] {
        let mut bytes = [0; EXTENDED_HEADER_LEN];
        self.fill(&mut bytes, EXTENDED_REPLY_MAGIC);
        bytes[16..24].copy_from_slice(&offset.to_be_bytes());
        bytes[24..].copy_from_slice(&u64::from(self.length).to_be_bytes());
        bytes
    }

    /// Writes what both kinds of header have in common: the first sixteen bytes.
    fn fill(&self, bytes: &mut [u8], magic: u32) {
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; CHUNK_HEADER_LEN]) -> Result<ChunkHeader, Violation> {
        let mut cursor = Cursor::new(bytes);
        let header = ChunkHeader::without_length(&mut cursor, STRUCTURED_REPLY_MAGIC, "a structured reply")?;
        Ok(ChunkHeader { length: cursor.u32().expect(WHOLE), ..header })
    }

    /// Reads a header under extended headers, and the offset of the request that is answered.
    pub fn decode_extended(bytes: &[u8; EXTENDED_HEADER_LEN]) -> Result<(ChunkHeader, u64), Violation> {
        let mut cursor = Cursor::new(bytes);
        let header = ChunkHeader::without_length(&mut cursor, EXTENDED_REPLY_MAGIC, "an extended reply")?;
        let (offset, length) = (cursor.u64().expect(WHOLE), cursor.u64().expect(WHOLE));
        let length = u32::try_from(length).map_err(|_| Violation::TooLong(length))?;
        Ok((ChunkHeader { length, ..header }, offset))
    }

    /// Reads what both kinds of header have in common.
    fn without_length(
        cursor: &mut Cursor<'_>,
        magic: u32,
        expected: &'static str,
    ) -> Result<ChunkHeader, Violation> {
        let found = cursor.u32().expect(WHOLE);
        if found != magic {
            return Err(Violation::Magic { expected, found: found.into() });
        }
        Ok(ChunkHeader {
            flags: ChunkFlags(cursor.u16().expect(WHOLE)),
            kind: ChunkType(cursor.u16().expect(WHOLE)),
            cookie: cursor.u64().expect(WHOLE),
            length: 0,
        })
    }
}

/// Some bytes of an export that have the same status in a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// What the context says of them.
    pub status: u64,
}

/// Appends what follows the header of a BLOCK_STATUS chunk.
///
/// # Panics
/// When a number does not fit in 32 bits.
pub fn put_extents(out: &mut Vec<u8>, context: u32, extents: &[Extent]) {
    let narrow = |number| u32::try_from(number).expect("requests without extended headers are short");
    out.put_u32(context);
    for extent in extents {
        out.put_u32(narrow(extent.length));
        out.put_u32(narrow(extent.status));
    }
}

/// Appends what follows the header of a BLOCK_STATUS_EXT chunk.
pub fn put_extents_extended(out: &mut Vec<u8>, context: u32, extents: &[Extent]) {
    out.put_u32(context);
    out.put_u32(u32::try_from(extents.len()).expect("an answer has few extents"));
    for extent in extents {
        out.put_u64(extent.length);
        out.put_u64(extent.status);
    }
}

/// Reads what follows the header of a BLOCK_STATUS_EXT chunk: the context's id, and at least one
/// extent, none of which is empty.
pub fn decode_extents_extended(data: &[u8]) -> Result<(u32, Vec<Extent>), Malformed> {
    let mut cursor = Cursor::new(data);
    let (context, count) = (cursor.u32()?, cursor.u32()?);
    let mut extents = Vec::new();
    // Each takes sixteen bytes, so the count cannot make us loop for long.
    for _ in 0..count {
        extents.push(extent(cursor.u64()?, cursor.u64()?)?);
    }
    cursor.end()?;
    if extents.is_empty() { Err(Malformed::Short) } else { Ok((context, extents)) }
}

fn extent(length: u64, status: u64) -> Result<Extent, Malformed> {
    if length == 0 { Err(Malformed::Short) } else { Ok(Extent { length, status }) }
}

/// Reads what follows the header of a BLOCK_STATUS chunk: the context's id, and at least one
/// extent, none of which is empty.
pub fn decode_extents(data: &[u8]) -> Result<(u32, Vec<Extent>), Malformed> {
    let mut cursor = Cursor::new(data);
    let context = cursor.u32()?;
    let mut extents = Vec::new();
    for _ in 0..(data.len() - 4).div_ceil(8).max(1) {
        extents.push(extent(cursor.u32()?.into(), cursor.u32()?.into())?);
    }
    cursor.end()?;
    Ok((context, extents))
}

/// Appends what follows the header of an ERROR chunk. The text is for people.
pub fn put_error(out: &mut Vec<u8>, error: WireError, text: &str) {
    let text = &text[..text.floor_char_boundary(crate::proto::STRING_MAX)];
    out.put_u32(error.0);
    out.put_u16(u16::try_from(text.len()).expect("STRING_MAX fits in 16 bits"));
    out.extend_from_slice(text.as_bytes());
}

/// Appends what follows the header of an ERROR_OFFSET chunk: also the byte of the export at which
/// the error was met.
pub fn put_error_offset(out: &mut Vec<u8>, error: WireError, text: &str, offset: u64) {
    put_error(out, error, text);
    out.put_u64(offset);
}

/// Reads what follows the header of an ERROR or ERROR_OFFSET chunk, without the offset.
pub fn decode_error(data: &[u8]) -> Result<(WireError, String), Malformed> {
    let mut cursor = Cursor::new(data);
    let error = WireError(cursor.u32()?);
    let len = cursor.u16()?;
    Ok((error, wire::string(cursor.bytes(len.into())?)?.to_owned()))
}
