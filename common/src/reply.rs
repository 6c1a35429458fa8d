//! Simple replies: sixteen bytes, then the data of a successful READ.

use crate::Violation;
use crate::proto::{SIMPLE_REPLY_HEADER_LEN, SIMPLE_REPLY_MAGIC, WireError};
use crate::wire::Cursor;

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
        let short = "a header has all its fields";
        let mut cursor = Cursor::new(bytes);
        let magic = cursor.u32().expect(short);
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(Violation::Magic { expected: "a simple reply", found: magic.into() });
        }
        let error = WireError(cursor.u32().expect(short));
        Ok(SimpleReply { error, cookie: cursor.u64().expect(short) })
    }
}
