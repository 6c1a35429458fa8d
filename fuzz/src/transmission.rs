//! Headers of requests and replies, and what follows them.

use common::command::{CONTEXTS_MAX, Command, RequestHeader, Span, Terms};
use common::handshake::context::ReplyStyle;
use common::proto::{
    CHUNK_HEADER_LEN, EXTENDED_HEADER_LEN, PAYLOAD_MAX, REQUEST_HEADER_LEN, SIMPLE_REPLY_HEADER_LEN,
    TransmissionFlags,
};
use common::reply::{self, ChunkHeader, SimpleReply};

/// Bytes of the export that requests are checked against; a whole number of blocks.
const SIZE: u64 = 1 << 40;
const BLOCK: u32 = 512;

/// The first three bytes choose what was agreed; the rest is a header and what follows it.
pub fn run(data: &[u8]) {
    let Some((&[style, high, low], rest)) = data.split_first_chunk() else { return };
    let style = match style % 3 {
        0 => ReplyStyle::Simple,
        1 => ReplyStyle::Structured,
        _ => ReplyStyle::Extended,
    };
    let flags = TransmissionFlags(u16::from_be_bytes([high, low]));
    let terms = Terms {
        size: SIZE,
        flags,
        block_min: BLOCK,
        payload_max: PAYLOAD_MAX,
        contexts: u32::from(low) % (CONTEXTS_MAX + 1),
        style,
    };
    request(rest, &terms);
    replies(rest);
}

fn request(bytes: &[u8], terms: &Terms) {
    let mut written = Vec::new();
    let (header, payload) = if terms.style == ReplyStyle::Extended {
        let Some((bytes, payload)) = bytes.split_first_chunk::<EXTENDED_HEADER_LEN>() else { return };
        let Ok(header) = RequestHeader::decode_extended(bytes) else { return };
        header.encode_extended(&mut written);
        assert_eq!(written, bytes);
        (header, payload)
    } else {
        let Some((bytes, payload)) = bytes.split_first_chunk::<REQUEST_HEADER_LEN>() else { return };
        let Ok(header) = RequestHeader::decode(bytes) else { return };
        header.encode(&mut written);
        assert_eq!(written, bytes);
        (header, payload)
    };
    match header.admit(terms) {
        Ok(Command::Filter) => {
            // The session reads exactly the header's length.
            if let Some(payload) = usize::try_from(header.length).ok().and_then(|len| payload.get(..len))
                && let Ok(command) = header.filter(terms, payload)
            {
                assert!(matches!(command, Command::BlockStatus(..)));
                is_inside(command);
            }
        }
        Ok(command) => is_inside(command),
        Err(refusal) => assert!(refusal.skip == 0 || refusal.skip == header.length),
    }
}

/// What was admitted lies inside the export, in whole blocks, and no payload is longer than agreed.
fn is_inside(command: Command) {
    let Span { at, len } = match command {
        Command::Read(span, _) | Command::Write(span, _) => {
            assert!(span.len <= u64::from(PAYLOAD_MAX));
            span
        }
        Command::Trim(span, _) | Command::WriteZeroes(span, ..) => span,
        Command::Cache(span) | Command::BlockStatus(span, ..) => span,
        Command::Flush | Command::Filter | Command::Disconnect => return,
    };
    assert!(at.checked_add(len).is_some_and(|end| end <= SIZE), "{command:?}");
    assert!(at.is_multiple_of(BLOCK.into()) && len.is_multiple_of(BLOCK.into()), "{command:?}");
}

fn replies(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<SIMPLE_REPLY_HEADER_LEN>()
        && let Ok(header) = SimpleReply::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk::<CHUNK_HEADER_LEN>()
        && let Ok(header) = ChunkHeader::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk::<EXTENDED_HEADER_LEN>()
        && let Ok((header, offset)) = ChunkHeader::decode_extended(bytes)
    {
        assert_eq!(&header.encode_extended(offset), bytes);
    }
    payloads(bytes);
}

/// What follows the header of a chunk.
fn payloads(bytes: &[u8]) {
    let mut written = Vec::new();
    if let Ok((context, extents)) = reply::decode_extents(bytes) {
        reply::put_extents(&mut written, context, &extents);
        assert_eq!(written, bytes);
    }
    written.clear();
    if let Ok((context, extents)) = reply::decode_extents_extended(bytes) {
        reply::put_extents_extended(&mut written, context, &extents);
        assert_eq!(written, bytes);
    }
    written.clear();
    if let Ok((error, text)) = reply::decode_error(bytes) {
        reply::put_error(&mut written, error, &text);
        assert!(bytes.starts_with(&written));
    }
}
