//! What a session says, taken apart by the rules of the style that was agreed.

use common::command::RequestHeader;
use common::handshake::context::ReplyStyle;
use common::proto::{
    CHUNK_HEADER_LEN, ChunkFlags, ChunkType, CommandType, EXTENDED_HEADER_LEN, SIMPLE_REPLY_HEADER_LEN,
    WireError,
};
use common::reply::{self, ChunkHeader, Extent, SimpleReply};

/// One request's whole answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// The first error that was told, or OK.
    pub(super) error: WireError,
    /// Where in the export, and what is there.
    pub(super) data: Vec<(u64, Vec<u8>)>,
    /// By context.
    pub(super) extents: Vec<(u32, Vec<Extent>)>,
}

/// A client's ears.
pub(super) struct Replies {
    asked: Vec<RequestHeader>,
    style: ReplyStyle,
    unread: Vec<u8>,
    open: Vec<Reply>,
    closed: Vec<Reply>,
}

impl Replies {
    pub(super) fn new(asked: Vec<RequestHeader>, style: ReplyStyle) -> Replies {
        Replies { asked, style, unread: Vec::new(), open: Vec::new(), closed: Vec::new() }
    }

    /// Takes what the server says.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        while let Some(len) = self.one() {
            self.unread.drain(..len);
        }
    }

    /// Requests whose answers are complete.
    pub(super) fn answered(&self) -> usize {
        self.closed.len()
    }

    /// The complete answers, in the order in which they ended; nothing may be left half said.
    pub(super) fn end(self) -> Vec<Reply> {
        assert!(self.unread.is_empty(), "the session stopped in the middle of a reply");
        assert!(self.open.is_empty(), "the session stopped between the chunks of a reply");
        self.closed
    }

    /// Takes one reply or chunk apart; tells how long it is if it is here whole.
    fn one(&mut self) -> Option<usize> {
        let magic = u32::from_be_bytes(*self.unread.first_chunk()?);
        match self.style {
            ReplyStyle::Extended => {
                let (header, offset) =
                    ChunkHeader::decode_extended(self.unread.first_chunk()?).expect("a header");
                assert_eq!(offset, self.asked(header.cookie).offset, "a chunk tells the request's offset");
                self.chunk(header, EXTENDED_HEADER_LEN)
            }
            ReplyStyle::Structured if magic != common::proto::SIMPLE_REPLY_MAGIC => {
                let header = ChunkHeader::decode(self.unread.first_chunk()?).expect("a header");
                self.chunk(header, CHUNK_HEADER_LEN)
            }
            ReplyStyle::Simple | ReplyStyle::Structured => self.simple(),
        }
    }

    fn asked(&self, cookie: u64) -> RequestHeader {
        let place = usize::try_from(cookie).ok();
        *place.and_then(|place| self.asked.get(place)).expect("an answer belongs to a request")
    }

    fn simple(&mut self) -> Option<usize> {
        let SimpleReply { error, cookie } =
            SimpleReply::decode(self.unread.first_chunk()?).expect("a header");
        let asked = self.asked(cookie);
        let is_read = asked.command == CommandType::READ;
        assert!(!is_read || self.style == ReplyStyle::Simple, "a READ has a structured reply");
        let carries = is_read && error == WireError::OK;
        let len = if carries { usize::try_from(asked.length).expect("it was admitted") } else { 0 };
        let payload = self.unread.get(SIMPLE_REPLY_HEADER_LEN..SIMPLE_REPLY_HEADER_LEN + len)?;
        let data = if carries { vec![(asked.offset, payload.to_vec())] } else { Vec::new() };
        self.closed.push(Reply { cookie, error, data, extents: Vec::new() });
        Some(SIMPLE_REPLY_HEADER_LEN + len)
    }

    fn chunk(&mut self, header: ChunkHeader, header_len: usize) -> Option<usize> {
        let len = usize::try_from(header.length).expect("32 bits");
        let payload = self.unread.get(header_len..header_len + len)?.to_vec();
        let cookie = header.cookie;
        let _known = self.asked(cookie);
        let place = self.open.iter().position(|reply| reply.cookie == cookie).unwrap_or_else(|| {
            self.open.push(Reply { cookie, error: WireError::OK, data: Vec::new(), extents: Vec::new() });
            self.open.len() - 1
        });
        self.open[place].take(header.kind, &payload);
        if header.flags.contains(ChunkFlags::DONE) {
            let reply = self.open.swap_remove(place);
            self.closed.push(reply);
        } else {
            assert_ne!(header.kind, ChunkType::NONE, "an empty chunk is the last");
        }
        Some(header_len + len)
    }
}

impl Reply {
    fn take(&mut self, kind: ChunkType, payload: &[u8]) {
        match kind {
            ChunkType::NONE => assert!(payload.is_empty()),
            ChunkType::OFFSET_DATA => {
                let (offset, data) = payload.split_first_chunk().expect("an offset");
                assert!(!data.is_empty(), "a chunk of data has some");
                self.data.push((u64::from_be_bytes(*offset), data.to_vec()));
            }
            ChunkType::OFFSET_HOLE => {
                let (offset, len) = payload.split_first_chunk().expect("an offset");
                let len = u32::from_be_bytes(len.try_into().expect("a length"));
                assert!(len > 0, "a hole has some bytes");
                self.data.push((u64::from_be_bytes(*offset), vec![0; len as usize]));
            }
            ChunkType::BLOCK_STATUS => self.extents.push(reply::decode_extents(payload).expect("extents")),
            ChunkType::BLOCK_STATUS_EXT => {
                self.extents.push(reply::decode_extents_extended(payload).expect("extents"));
            }
            ChunkType::ERROR | ChunkType::ERROR_OFFSET => {
                let (error, _) = reply::decode_error(payload).expect("an error");
                assert_ne!(error, WireError::OK, "an error is one");
                if self.error == WireError::OK {
                    self.error = error;
                }
            }
            other => panic!("a chunk of kind {other:?}"),
        }
    }
}
