//! The header of a request, and its check against what was agreed.

use super::{Chunks, Command, ContextSet, Extents, Fua, Hole, Refusal, Span, Speed, Terms, Zeroing};
use crate::Violation;
use crate::handshake::context::ReplyStyle;
use crate::proto::{
    CommandFlags, CommandType, EXTENDED_HEADER_LEN, EXTENDED_REQUEST_MAGIC, REQUEST_HEADER_LEN,
    REQUEST_MAGIC, TransmissionFlags, WireError,
};
use crate::wire::{Cursor, Put};

/// Why a field of a header can be read: its bytes are counted.
const WHOLE: &str = "a header has all its fields";
/// Bytes of a BLOCK_STATUS payload before the ids of contexts: the length of the range.
const FILTER_HEAD_LEN: u64 = 8;

/// What opens every request: 28 bytes, or 32 under extended headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Modifiers.
    pub flags: CommandFlags,
    /// What is asked.
    pub command: CommandType,
    /// The client's name for the request, repeated in the reply.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range, and of the payload of a WRITE.
    pub length: u64,
}

impl RequestHeader {
    /// Reads a header; a wrong magic means that the stream is out of step for good.
    pub fn decode(bytes: &[u8; REQUEST_HEADER_LEN]) -> Result<RequestHeader, Violation> {
        let mut cursor = Cursor::new(bytes);
        let header = RequestHeader::without_length(&mut cursor, REQUEST_MAGIC, "a request")?;
        Ok(RequestHeader { length: cursor.u32().expect(WHOLE).into(), ..header })
    }

    /// Reads a header under extended headers.
    pub fn decode_extended(bytes: &[u8; EXTENDED_HEADER_LEN]) -> Result<RequestHeader, Violation> {
        let mut cursor = Cursor::new(bytes);
        let header =
            RequestHeader::without_length(&mut cursor, EXTENDED_REQUEST_MAGIC, "an extended request")?;
        Ok(RequestHeader { length: cursor.u64().expect(WHOLE), ..header })
    }

    /// Reads what both kinds of header have in common.
    fn without_length(
        cursor: &mut Cursor<'_>,
        magic: u32,
        expected: &'static str,
    ) -> Result<RequestHeader, Violation> {
        let found = cursor.u32().expect(WHOLE);
        if found != magic {
            return Err(Violation::Magic { expected, found: found.into() });
        }
        Ok(RequestHeader {
            flags: CommandFlags(cursor.u16().expect(WHOLE)),
            command: CommandType(cursor.u16().expect(WHOLE)),
            cookie: cursor.u64().expect(WHOLE),
            offset: cursor.u64().expect(WHOLE),
            length: 0,
        })
    }

    /// Appends the header to `out`.
    ///
    /// # Panics
    /// When the length does not fit in 32 bits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.put_without_length(out, REQUEST_MAGIC);
        out.put_u32(u32::try_from(self.length).expect("longer requests need extended headers"));
    }

    /// Appends the header to `out`, as extended headers have it.
    pub fn encode_extended(&self, out: &mut Vec<u8>) {
        self.put_without_length(out, EXTENDED_REQUEST_MAGIC);
        out.put_u64(self.length);
    }

    fn put_without_length(&self, out: &mut Vec<u8>, magic: u32) {
        out.put_u32(magic);
        out.put_u16(self.flags.0);
        out.put_u16(self.command.0);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
    }

    /// Checks the request against what was agreed.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with; its error follows "Error values" in the spec.
    pub fn admit(&self, terms: &Terms) -> Result<Command, Refusal> {
        // Whatever is wrong with a request, its payload comes.
        let skip = if self.has_payload(terms) { self.length } else { 0 };
        self.check(terms).map_err(|error| Refusal { error, skip })
    }

    /// Whether a payload of the header's length follows. A WRITE has one even if it does not say so.
    fn has_payload(&self, terms: &Terms) -> bool {
        let says_so = terms.style == ReplyStyle::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        says_so || self.command == CommandType::WRITE
    }

    fn check(&self, terms: &Terms) -> Result<Command, WireError> {
        let may = |flag| if terms.flags.contains(flag) { Ok(()) } else { Err(WireError::EINVAL) };
        let command = match self.command {
            CommandType::DISC => return Ok(Command::Disconnect),
            CommandType::READ => Command::Read(self.span(terms, WireError::EINVAL)?, self.chunks(terms)),
            CommandType::WRITE => {
                self.writable(terms)?;
                Command::Write(self.span(terms, WireError::ENOSPC)?, self.fua())
            }
            CommandType::FLUSH => {
                may(TransmissionFlags::SEND_FLUSH)?;
                // "For a flush request, length and offset are reserved": anything else is a
                // request from a future we do not know.
                if (self.offset, self.length) != (0, 0) {
                    return Err(WireError::EINVAL);
                }
                Command::Flush
            }
            CommandType::TRIM => {
                self.writable(terms)?;
                may(TransmissionFlags::SEND_TRIM)?;
                Command::Trim(self.span(terms, WireError::EINVAL)?, self.fua())
            }
            CommandType::WRITE_ZEROES => {
                self.writable(terms)?;
                may(TransmissionFlags::SEND_WRITE_ZEROES)?;
                Command::WriteZeroes(self.span(terms, WireError::ENOSPC)?, self.zeroing(), self.fua())
            }
            CommandType::CACHE => {
                may(TransmissionFlags::SEND_CACHE)?;
                Command::Cache(self.span(terms, WireError::EINVAL)?)
            }
            CommandType::BLOCK_STATUS => self.block_status(terms)?,
            _ => return Err(WireError::EINVAL),
        };
        self.check_flags(terms)?;
        self.check_payload(terms)?;
        Ok(command)
    }

    /// The range, inside the export and aligned; `beyond` is the error of one that is not inside.
    fn span(&self, terms: &Terms, beyond: WireError) -> Result<Span, WireError> {
        let end = self.offset.checked_add(self.length);
        if end.is_none_or(|end| end > terms.size) {
            return Err(beyond);
        }
        let unaligned = |value: u64| !value.is_multiple_of(u64::from(terms.block_min));
        if unaligned(self.offset) || unaligned(self.length) {
            return Err(WireError::EINVAL);
        }
        Ok(Span { at: self.offset, len: self.length })
    }

    fn block_status(&self, terms: &Terms) -> Result<Command, WireError> {
        // Without contexts there is nothing to say, and an empty range has no extent.
        if terms.contexts == 0 || self.length == 0 {
            return Err(WireError::EINVAL);
        }
        if !self.has_payload(terms) {
            let span = self.span(terms, WireError::EINVAL)?;
            return Ok(Command::BlockStatus(span, self.extents(), ContextSet::ALL));
        }
        let ids = self.length.checked_sub(FILTER_HEAD_LEN).ok_or(WireError::EINVAL)? / 4;
        if ids == 0 || ids > u64::from(terms.contexts) || self.length != FILTER_HEAD_LEN + 4 * ids {
            return Err(WireError::EINVAL);
        }
        Ok(Command::Filter)
    }

    /// Reads the payload of a [`Command::Filter`], which has the header's length: the range, and the
    /// ids of contexts, each selected and named once.
    ///
    /// # Errors
    /// The error to answer with.
    pub fn filter(&self, terms: &Terms, payload: &[u8]) -> Result<Command, WireError> {
        let mut cursor = Cursor::new(payload);
        let length = cursor.u64().map_err(|_| WireError::EINVAL)?;
        let mut contexts = ContextSet::NONE;
        while let Ok(id) = cursor.u32() {
            if id == 0 || id > terms.contexts || contexts.contains(id) {
                return Err(WireError::EINVAL);
            }
            contexts = contexts.with(id);
        }
        if length == 0 || contexts == ContextSet::NONE {
            return Err(WireError::EINVAL);
        }
        let span = RequestHeader { length, ..*self }.span(terms, WireError::EINVAL)?;
        Ok(Command::BlockStatus(span, self.extents(), contexts))
    }

    fn writable(&self, terms: &Terms) -> Result<(), WireError> {
        match terms.flags.contains(TransmissionFlags::READ_ONLY) {
            true => Err(WireError::EPERM),
            false => Ok(()),
        }
    }

    /// A flag that was not advertised or does not belong to the command is an error, always.
    fn check_flags(&self, terms: &Terms) -> Result<(), WireError> {
        let mut valid = CommandFlags::NONE;
        if terms.flags.contains(TransmissionFlags::SEND_FUA) {
            valid |= CommandFlags::FUA;
        }
        match self.command {
            CommandType::WRITE_ZEROES => {
                valid |= CommandFlags::NO_HOLE;
                if terms.flags.contains(TransmissionFlags::SEND_FAST_ZERO) {
                    valid |= CommandFlags::FAST_ZERO;
                }
            }
            CommandType::WRITE if terms.style == ReplyStyle::Extended => valid |= CommandFlags::PAYLOAD_LEN,
            CommandType::READ if terms.flags.contains(TransmissionFlags::SEND_DF) => {
                valid |= CommandFlags::DF;
            }
            CommandType::BLOCK_STATUS => {
                valid |= CommandFlags::REQ_ONE;
                if terms.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
                    valid |= CommandFlags::PAYLOAD_LEN;
                }
            }
            _ => {}
        }
        if self.flags.without(valid) == CommandFlags::NONE { Ok(()) } else { Err(WireError::EINVAL) }
    }

    fn check_payload(&self, terms: &Terms) -> Result<(), WireError> {
        match self.command {
            CommandType::READ if self.length > terms.payload_max.into() => Err(WireError::EOVERFLOW),
            CommandType::WRITE if self.length > terms.payload_max.into() => Err(WireError::EINVAL),
            _ => Ok(()),
        }
    }

    fn fua(&self) -> Fua {
        if self.flags.contains(CommandFlags::FUA) { Fua::Yes } else { Fua::No }
    }

    fn extents(&self) -> Extents {
        if self.flags.contains(CommandFlags::REQ_ONE) { Extents::One } else { Extents::Any }
    }

    fn zeroing(&self) -> Zeroing {
        let has = |flag| self.flags.contains(flag);
        Zeroing {
            hole: if has(CommandFlags::NO_HOLE) { Hole::Forbidden } else { Hole::Allowed },
            speed: if has(CommandFlags::FAST_ZERO) { Speed::Fast } else { Speed::Any },
        }
    }

    fn chunks(&self, terms: &Terms) -> Chunks {
        let one = terms.style == ReplyStyle::Simple || self.flags.contains(CommandFlags::DF);
        if one { Chunks::One } else { Chunks::Any }
    }
}
