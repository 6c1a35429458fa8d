//! Requests made of arbitrary bytes.

use common::command::{RequestHeader, Terms};
use common::handshake::context::ReplyStyle;
use common::proto::{CommandFlags, CommandType};

/// Requests in one session.
const REQUESTS_MAX: usize = 48;
/// Longest payload that is really sent; a longer one is announced and never comes.
const PAYLOAD_MAX: u64 = 80 << 10;
/// Bytes of input a request is made of.
const SEED: usize = 8;

/// A request as it is sent.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) header: RequestHeader,
    pub(super) payload: Vec<u8>,
    /// Whether the client goes before it has sent all of it.
    pub(super) is_cut: bool,
}

impl Request {
    /// Header and payload.
    pub(super) fn encode(&self, style: ReplyStyle) -> Vec<u8> {
        let mut out = Vec::new();
        match style {
            ReplyStyle::Extended => self.header.encode_extended(&mut out),
            ReplyStyle::Simple | ReplyStyle::Structured => self.header.encode(&mut out),
        }
        out.extend_from_slice(&self.payload);
        out
    }

    /// Whether the client says goodbye with it.
    pub(super) fn is_last(&self) -> bool {
        self.is_cut || self.header.command == CommandType::DISC
    }
}

/// The requests of a session, up to the one with which the client goes.
pub(super) fn all(data: &[u8], terms: &Terms) -> Vec<Request> {
    let mut requests = Vec::new();
    for seed in data.as_chunks::<SEED>().0.iter().take(REQUESTS_MAX) {
        let cookie = u64::try_from(requests.len()).expect("few requests");
        let request = one(*seed, cookie, terms);
        let is_last = request.is_last();
        requests.push(request);
        if is_last {
            break;
        }
    }
    requests
}

fn one(
    [what, flags, at_high, at_low, len_high, len_low, scale, fill]: [u8; SEED],
    cookie: u64,
    terms: &Terms,
) -> Request {
    let command = CommandType(u16::from(what % 10));
    let at = u64::from(u16::from_be_bytes([at_high, at_low]));
    let len = u64::from(u16::from_be_bytes([len_high, len_low]));
    // Most are near the export, some at its end, some beyond all bounds.
    let (offset, length) = match scale % 16 {
        0 => (u64::MAX - at, len),
        1 => (at, u64::from(u32::MAX) - len),
        2 => (terms.size.saturating_sub(at % 64), len),
        3 => (at, if terms.style == ReplyStyle::Extended { u64::MAX - len } else { len }),
        4 => (0, 0),
        5..10 => (at & !511, len & 0x1e00),
        _ => (at, len),
    };
    let flags = CommandFlags(u16::from(flags));
    let header = RequestHeader { flags, command, cookie, offset, length };
    let announced = terms.style == ReplyStyle::Extended && flags.contains(CommandFlags::PAYLOAD_LEN);
    let due = if announced || command == CommandType::WRITE { length } else { 0 };
    let is_cut = due > PAYLOAD_MAX;
    let payload =
        if is_cut { Vec::new() } else { payload(command, usize::try_from(due).expect("short"), fill) };
    Request { header, payload, is_cut }
}

/// What a payload of `len` bytes says: data, or for BLOCK_STATUS a range and the ids of contexts.
fn payload(command: CommandType, len: usize, fill: u8) -> Vec<u8> {
    let mut payload: Vec<u8> =
        (0..len).map(|place| fill.wrapping_add(u8::try_from(place / 512 % 256).unwrap_or(0))).collect();
    if command == CommandType::BLOCK_STATUS && len >= 12 {
        payload[..8].copy_from_slice(&(u64::from(fill) * 256).to_be_bytes());
        payload[8..12].copy_from_slice(&u32::from(fill % 3).to_be_bytes());
    }
    payload
}
