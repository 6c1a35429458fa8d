//! A raw client whose replies come in chunks, by structured replies or under extended headers.

use std::io::Write;

use common::command::RequestHeader;
use common::handshake::context::{ContextRequest, ReplyStyle};
use common::proto::{
    CHUNK_HEADER_LEN, ChunkFlags, ChunkType, CommandFlags, CommandType, EXTENDED_HEADER_LEN, OptionType,
    ReplyType, WireError,
};
use common::reply::{ChunkHeader, Extent, decode_error, decode_extents, decode_extents_extended};

use crate::client::Socket;
use crate::haggle::Haggle;
use crate::server::Endpoint;

/// A client in transmission that asks one thing at a time.
pub struct Chunked {
    /// For bytes that no decent client sends.
    pub socket: Socket,
    style: ReplyStyle,
    next_cookie: u64,
}

/// One chunk: what it is and what followed its header.
pub type Chunk = (ChunkType, Vec<u8>);

impl Chunked {
    /// Connects to the default export and selects contexts, all of which it must have.
    ///
    /// # Panics
    /// When the server does not agree.
    #[must_use]
    pub fn connect(to: &Endpoint, style: ReplyStyle, contexts: &[&str]) -> Chunked {
        Chunked::connect_to(to, "", style, contexts)
    }

    /// The same, to an export by its name.
    ///
    /// # Panics
    /// When the server does not agree.
    #[must_use]
    pub fn connect_to(to: &Endpoint, export: &str, style: ReplyStyle, contexts: &[&str]) -> Chunked {
        let mut haggle = Haggle::modern(to);
        let option = match style {
            ReplyStyle::Extended => OptionType::EXTENDED_HEADERS,
            _ => OptionType::STRUCTURED_REPLY,
        };
        assert_eq!(haggle.ask(option, b"").1, ReplyType::ACK);
        let queries: Vec<String> = contexts.iter().map(|name| (*name).to_owned()).collect();
        let request = ContextRequest { export: export.to_owned(), queries };
        if !contexts.is_empty() {
            let (selected, reply) = haggle.ask(OptionType::SET_META_CONTEXT, &request.encode());
            assert_eq!((selected.len(), reply), (contexts.len(), ReplyType::ACK));
        }
        assert_eq!(haggle.ask_about(OptionType::GO, export).1, ReplyType::ACK);
        Chunked { socket: haggle.socket, style, next_cookie: 1 }
    }

    /// Sends a request and its payload, and gives the chunks of the answer.
    ///
    /// # Panics
    /// When the answer is to something else or has no end.
    pub fn ask_with(
        &mut self,
        command: CommandType,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Vec<Chunk> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let header = RequestHeader { flags, command, cookie, offset, length };
        let mut out = Vec::new();
        match self.style {
            ReplyStyle::Extended => header.encode_extended(&mut out),
            _ => header.encode(&mut out),
        }
        out.extend_from_slice(payload);
        self.socket.write_all(&out).expect("the server takes requests");
        let mut chunks = Vec::new();
        loop {
            let header = self.header(offset);
            assert_eq!(header.cookie, cookie);
            chunks.push((header.kind, self.socket.receive(header.length as usize).expect("a payload")));
            if header.flags == ChunkFlags::DONE {
                return chunks;
            }
        }
    }

    /// Sends a request without a payload, and gives the chunks of the answer.
    pub fn ask(&mut self, command: CommandType, flags: CommandFlags, offset: u64, length: u64) -> Vec<Chunk> {
        self.ask_with(command, flags, offset, length, &[])
    }

    /// What BLOCK_STATUS says: of each context its id and its extents.
    ///
    /// # Panics
    /// When it says something else.
    pub fn status(&mut self, flags: CommandFlags, offset: u64, length: u64) -> Vec<(u32, Vec<Extent>)> {
        extents(self.ask(CommandType::BLOCK_STATUS, flags, offset, length))
    }

    /// The header of the next chunk, which answers a request at `offset`.
    fn header(&mut self, offset: u64) -> ChunkHeader {
        if self.style != ReplyStyle::Extended {
            let bytes = self.socket.receive(CHUNK_HEADER_LEN).expect("an answer");
            return ChunkHeader::decode(&bytes.try_into().expect("twenty bytes")).expect("a chunk");
        }
        let bytes = self.socket.receive(EXTENDED_HEADER_LEN).expect("an answer");
        let bytes = bytes.try_into().expect("32 bytes");
        let (header, repeated) = ChunkHeader::decode_extended(&bytes).expect("an extended reply");
        assert_eq!(repeated, offset, "the request's offset is repeated");
        header
    }
}

/// The extents in chunks of BLOCK_STATUS.
///
/// # Panics
/// When a chunk is something else.
#[must_use]
pub fn extents(chunks: Vec<Chunk>) -> Vec<(u32, Vec<Extent>)> {
    let read = |(kind, payload): Chunk| match kind {
        ChunkType::BLOCK_STATUS => decode_extents(&payload).expect("extents"),
        ChunkType::BLOCK_STATUS_EXT => decode_extents_extended(&payload).expect("extents"),
        _ => panic!("{kind:?} tells no extents"),
    };
    chunks.into_iter().map(read).collect()
}

/// The error that is the whole answer, and the byte where it was met, if that was told.
///
/// # Panics
/// When the answer is something else.
#[must_use]
pub fn error(chunks: &[Chunk]) -> (WireError, Option<u64>) {
    match chunks {
        [(ChunkType::ERROR, payload)] => (decode_error(payload).expect("an error").0, None),
        [(ChunkType::ERROR_OFFSET, payload)] => {
            let (payload, offset) = payload.split_last_chunk().expect("an offset at the end");
            (decode_error(payload).expect("an error").0, Some(u64::from_be_bytes(*offset)))
        }
        _ => panic!("{chunks:?} is no error"),
    }
}
