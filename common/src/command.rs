//! Requests of the transmission phase.
//!
//! Parse, don't validate: a raw [`RequestHeader`] becomes a typed [`Command`] or a [`Refusal`]
//! that says what to answer and how many bytes of payload to throw away. After that no flag bits
//! and no unchecked offsets exist.

use crate::Violation;
use crate::proto::{
    CommandFlags, CommandType, REQUEST_HEADER_LEN, REQUEST_MAGIC, TransmissionFlags, WireError,
};
use crate::wire::{Cursor, Put};

/// Whether the effect must be on stable storage before the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fua {
    /// NBD_CMD_FLAG_FUA was set.
    Yes,
    /// A later FLUSH makes it durable.
    No,
}

/// Whether zeroes may be represented by a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hole {
    /// Space may be given back.
    Allowed,
    /// NBD_CMD_FLAG_NO_HOLE was set: later writes there must not fail for want of space.
    Forbidden,
}

/// A range of an export: `len` bytes at byte `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// The first byte after the range. Spans of admitted commands never wrap.
    #[must_use]
    pub fn end(self) -> u64 {
        self.at + u64::from(self.len)
    }
}

/// What a client asks for, checked against its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Answer with data.
    Read(Span),
    /// Store the payload that follows the header.
    Write(Span, Fua),
    /// Make everything acknowledged so far durable.
    Flush,
    /// The range's content is no longer needed.
    Trim(Span, Fua),
    /// The range reads as zero from now on.
    WriteZeroes(Span, Hole, Fua),
    /// Answer with what the selected contexts say about the range.
    BlockStatus(Span),
    /// Finish what is outstanding and close; never answered.
    Disconnect,
}

/// A request that is answered with an error and has no other effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The answer.
    pub error: WireError,
    /// Bytes of payload that follow the header and must be thrown away to stay in step.
    pub skip: u32,
}

/// What was agreed for a connection: requests are checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of the export.
    pub size: u64,
    /// Transmission flags the client was told.
    pub flags: TransmissionFlags,
    /// Alignment and smallest length of requests, in bytes.
    pub block_min: u32,
    /// Longest READ or WRITE, in bytes.
    pub payload_max: u32,
    /// Metadata contexts that were selected.
    pub contexts: usize,
}

/// The 28 bytes that open every request.
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
    pub length: u32,
}

impl RequestHeader {
    /// Reads a header; a wrong magic means that the stream is out of step for good.
    pub fn decode(bytes: &[u8; REQUEST_HEADER_LEN]) -> Result<RequestHeader, Violation> {
        let short = "a header has all its fields";
        let mut cursor = Cursor::new(bytes);
        let magic = cursor.u32().expect(short);
        if magic != REQUEST_MAGIC {
            return Err(Violation::Magic { expected: "a request", found: magic.into() });
        }
        Ok(RequestHeader {
            flags: CommandFlags(cursor.u16().expect(short)),
            command: CommandType(cursor.u16().expect(short)),
            cookie: cursor.u64().expect(short),
            offset: cursor.u64().expect(short),
            length: cursor.u32().expect(short),
        })
    }

    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags.0);
        out.put_u16(self.command.0);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.length);
    }

    /// Checks the request against what was agreed.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with; its error follows "Error values" in the spec.
    pub fn admit(&self, terms: &Terms) -> Result<Command, Refusal> {
        // Only WRITE carries a payload; whatever is wrong with it, the payload comes.
        let skip = if self.command == CommandType::WRITE { self.length } else { 0 };
        self.check(terms).map_err(|error| Refusal { error, skip })
    }

    fn check(&self, terms: &Terms) -> Result<Command, WireError> {
        let may = |flag| if terms.flags.contains(flag) { Ok(()) } else { Err(WireError::EINVAL) };
        let command = match self.command {
            CommandType::DISC => return Ok(Command::Disconnect),
            CommandType::READ => Command::Read(self.span(terms, WireError::EINVAL)?),
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
                Command::WriteZeroes(self.span(terms, WireError::ENOSPC)?, self.hole(), self.fua())
            }
            // Without contexts there is nothing to say, and an empty range has no extent.
            CommandType::BLOCK_STATUS if terms.contexts > 0 && self.length > 0 => {
                Command::BlockStatus(self.span(terms, WireError::EINVAL)?)
            }
            _ => return Err(WireError::EINVAL),
        };
        self.check_flags(terms)?;
        self.check_payload(terms)?;
        Ok(command)
    }

    /// The range, inside the export and aligned; `beyond` is the error of one that is not inside.
    fn span(&self, terms: &Terms, beyond: WireError) -> Result<Span, WireError> {
        let end = self.offset.checked_add(self.length.into());
        if end.is_none_or(|end| end > terms.size) {
            return Err(beyond);
        }
        let unaligned = |value: u64| !value.is_multiple_of(u64::from(terms.block_min));
        if unaligned(self.offset) || unaligned(self.length.into()) {
            return Err(WireError::EINVAL);
        }
        Ok(Span { at: self.offset, len: self.length })
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
            CommandType::WRITE_ZEROES => valid |= CommandFlags::NO_HOLE,
            CommandType::READ if terms.flags.contains(TransmissionFlags::SEND_DF) => {
                valid |= CommandFlags::DF;
            }
            CommandType::BLOCK_STATUS => valid |= CommandFlags::REQ_ONE,
            _ => {}
        }
        if self.flags.without(valid) == CommandFlags::NONE { Ok(()) } else { Err(WireError::EINVAL) }
    }

    fn check_payload(&self, terms: &Terms) -> Result<(), WireError> {
        match self.command {
            CommandType::READ if self.length > terms.payload_max => Err(WireError::EOVERFLOW),
            CommandType::WRITE if self.length > terms.payload_max => Err(WireError::EINVAL),
            _ => Ok(()),
        }
    }

    fn fua(&self) -> Fua {
        if self.flags.contains(CommandFlags::FUA) { Fua::Yes } else { Fua::No }
    }

    fn hole(&self) -> Hole {
        if self.flags.contains(CommandFlags::NO_HOLE) { Hole::Forbidden } else { Hole::Allowed }
    }
}
