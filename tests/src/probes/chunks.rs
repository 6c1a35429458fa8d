//! Structured replies and extended headers: chunks, holes, extents.

use anyhow::{Context, bail, ensure};
use common::handshake::context::{ContextRequest, ReplyStyle};
use common::proto::{
    ChunkType, CommandFlags, CommandType, OptionType, ReplyType, TransmissionFlags, WireError,
};
use common::reply::{Extent, decode_error};

use super::{Outcome, Probe, Target, offered};
use crate::chunked::{Chunk, Chunked};
use crate::client::PLAIN;
use crate::disk::pattern;

type C = CommandType;

const ALLOCATION: &str = "base:allocation";
/// The flag of `base:allocation` for what reads as zero.
const ZERO: u64 = 2;
/// Bytes at the beginning of the export that the probes write and read.
const LEN: u64 = 256 << 10;

pub(super) const PROBES: &[Probe] = &[
    Probe {
        section: "Structured reply types",
        name: "the chunks of a READ tell every byte once",
        script: |target| reads(target, ReplyStyle::Structured),
    },
    Probe {
        section: "Structured reply chunk message",
        name: "a READ that fails is a structured error all the same",
        script: |target| read_errors(target, ReplyStyle::Structured),
    },
    Probe { section: "Request types", name: "DF makes one chunk of a READ", script: unfragmented },
    Probe {
        section: "Metadata querying",
        name: "BLOCK_STATUS keeps the rules for extents",
        script: |target| status(target, ReplyStyle::Structured),
    },
    Probe {
        section: "Metadata querying",
        name: "REQ_ONE is one extent, within the request",
        script: one_extent,
    },
    Probe {
        section: "Metadata querying",
        name: "what is said to be zero reads as zero",
        script: zero_is_zero,
    },
    Probe {
        section: "Request types",
        name: "BLOCK_STATUS without a context, or beyond the end, is EINVAL",
        script: status_errors,
    },
    Probe {
        section: "Extended headers",
        name: "extended headers: a READ tells every byte once",
        script: |target| reads(target, ReplyStyle::Extended),
    },
    Probe {
        section: "Extended headers",
        name: "extended headers: errors are chunks",
        script: |target| read_errors(target, ReplyStyle::Extended),
    },
    Probe {
        section: "Extended headers",
        name: "extended headers: BLOCK_STATUS keeps the rules for extents",
        script: |target| status(target, ReplyStyle::Extended),
    },
    Probe {
        section: "Extended headers",
        name: "extended headers: a WRITE says its payload",
        script: payload,
    },
];

/// Writes data with a hole in the middle, as far as the server can make one.
fn prepare(target: &Target) -> anyhow::Result<Vec<u8>> {
    let mut client = target.writable(TransmissionFlags::NONE)?;
    let mut bytes = pattern(9, usize::try_from(LEN)?);
    ensure!(client.write(PLAIN, 0, &bytes) == WireError::OK, "a WRITE fails");
    if client.export.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        let (at, len) = (64 << 10, 128 << 10);
        let zeroed = client.ask(C::WRITE_ZEROES, PLAIN, at, len);
        ensure!(zeroed == WireError::OK, "WRITE_ZEROES is {zeroed:?}");
        bytes[64 << 10..192 << 10].fill(0);
    }
    Ok(bytes)
}

/// What the content chunks of a READ tell, each byte once.
fn content(chunks: &[Chunk], at: u64, len: u64) -> anyhow::Result<Vec<u8>> {
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    for (kind, payload) in chunks {
        let (offset, rest) = match *kind {
            ChunkType::NONE if payload.is_empty() => continue,
            ChunkType::OFFSET_DATA | ChunkType::OFFSET_HOLE => {
                payload.split_first_chunk().context("a chunk without an offset")?
            }
            _ => bail!("a READ is answered by a chunk {kind:?}"),
        };
        let bytes = if *kind == ChunkType::OFFSET_DATA {
            rest.to_vec()
        } else {
            vec![0; u32::from_be_bytes(rest.try_into().context("a hole without a length")?) as usize]
        };
        ensure!(!bytes.is_empty(), "a chunk of {kind:?} about nothing");
        pieces.push((u64::from_be_bytes(*offset), bytes));
    }
    pieces.sort();
    let mut all = Vec::new();
    for (offset, bytes) in pieces {
        ensure!(offset == at + all.len() as u64, "a gap or an overlap at {offset}");
        all.extend(bytes);
    }
    ensure!(all.len() as u64 == len, "{} bytes of {len} are told", all.len());
    Ok(all)
}

fn reads(target: &Target, style: ReplyStyle) -> Outcome {
    let wanted = prepare(target)?;
    let mut client = target.chunked(style, &[])?;
    for (at, len) in [(0, LEN), (100, 70_000), (65_000, 1000), (0, 1)] {
        let told = content(&client.ask(C::READ, PLAIN, at, len), at, len)?;
        let (from, to) = (usize::try_from(at)?, usize::try_from(at + len)?);
        ensure!(told == wanted[from..to], "it tells something else than was written");
    }
    Ok(())
}

/// The error that ends an answer.
fn error(chunks: &[Chunk]) -> anyhow::Result<WireError> {
    let (kind, payload) = chunks.iter().find(|(kind, _)| kind.0 & 1 << 15 != 0).context("no error chunk")?;
    let payload = match *kind {
        ChunkType::ERROR => &payload[..],
        ChunkType::ERROR_OFFSET => payload.split_last_chunk::<8>().context("no offset")?.0,
        _ => bail!("an error of kind {kind:?}"),
    };
    Ok(decode_error(payload).context("a malformed error chunk")?.0)
}

fn read_errors(target: &Target, style: ReplyStyle) -> Outcome {
    let size = target.export().size;
    let mut client = target.chunked(style, &[])?;
    for (flags, at, len) in [
        (PLAIN, size, 512),
        (PLAIN, size - 512, 1024),
        (PLAIN, u64::MAX - 511, 512),
        (CommandFlags::NO_HOLE, 0, 512),
        (CommandFlags(1 << 15), 0, 512),
    ] {
        let seen = error(&client.ask(C::READ, flags, at, len))?;
        ensure!(seen == WireError::EINVAL, "a READ of {len} bytes at {at} with {flags:?} is {seen:?}");
    }
    content(&client.ask(C::READ, PLAIN, 0, 512), 0, 512).map(drop)
}

fn unfragmented(target: &Target) -> Outcome {
    let wanted = prepare(target)?;
    let mut client = target.chunked(ReplyStyle::Structured, &[])?;
    for (at, len) in [(0, 65_536), (32 << 10, 65_536)] {
        let chunks = client.ask(C::READ, CommandFlags::DF, at, len);
        let contents = chunks.iter().filter(|(kind, _)| *kind != ChunkType::NONE).count();
        ensure!(contents == 1, "{contents} chunks");
        let from = usize::try_from(at)?;
        ensure!(content(&chunks, at, len)? == wanted[from..from + 65_536], "it tells something else");
    }
    Ok(())
}

/// A connection that has selected `base:allocation`.
fn selected(target: &Target, style: ReplyStyle) -> anyhow::Result<Chunked> {
    let mut haggle = target.haggle();
    let option = match style {
        ReplyStyle::Extended => OptionType::EXTENDED_HEADERS,
        _ => OptionType::STRUCTURED_REPLY,
    };
    offered(haggle.ask(option, b"").1 == ReplyType::ACK)?;
    let queries = vec![ALLOCATION.to_owned()];
    let request = ContextRequest { export: target.export.clone(), queries };
    let (pieces, _) = haggle.ask(OptionType::SET_META_CONTEXT, &request.encode());
    offered(pieces.len() == 1)?;
    target.chunked(style, &[ALLOCATION])
}

/// What one context says.
fn told(mut answer: Vec<(u32, Vec<Extent>)>) -> anyhow::Result<Vec<Extent>> {
    ensure!(answer.len() == 1, "{} answers about one context", answer.len());
    Ok(answer.remove(0).1)
}

fn status(target: &Target, style: ReplyStyle) -> Outcome {
    prepare(target)?;
    let mut client = selected(target, style)?;
    for (at, len) in [(0, LEN), (512, 512), (100, 70_000)] {
        let extents = told(client.status(PLAIN, at, len))?;
        let before: u64 = extents.iter().rev().skip(1).map(|extent| extent.length).sum();
        ensure!(before < len, "all extents but the last tell {before} bytes, {len} were asked for");
    }
    Ok(())
}

fn one_extent(target: &Target) -> Outcome {
    prepare(target)?;
    let mut client = selected(target, ReplyStyle::Structured)?;
    for (at, len) in [(0, LEN), (512, 512), (64 << 10, 4096)] {
        let extents = told(client.status(CommandFlags::REQ_ONE, at, len))?;
        let [extent] = extents[..] else { bail!("{} extents", extents.len()) };
        ensure!(extent.length <= len, "{} bytes, {len} were asked for", extent.length);
    }
    Ok(())
}

fn zero_is_zero(target: &Target) -> Outcome {
    prepare(target)?;
    let mut client = selected(target, ReplyStyle::Structured)?;
    let mut at = 0;
    while at < LEN {
        let [extent, ..] = told(client.status(PLAIN, at, LEN - at))?[..] else { bail!("no extent") };
        let len = extent.length.min(LEN - at);
        let bytes = content(&client.ask(C::READ, PLAIN, at, len), at, len)?;
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        ensure!(extent.status & ZERO == 0 || is_zero, "{len} bytes at {at} are said to be zero");
        at += len;
    }
    Ok(())
}

fn status_errors(target: &Target) -> Outcome {
    let size = target.export().size;
    let mut without = target.chunked(ReplyStyle::Structured, &[])?;
    let seen = error(&without.ask(C::BLOCK_STATUS, PLAIN, 0, 512))?;
    ensure!(seen == WireError::EINVAL, "without a context it is {seen:?}");
    let mut client = selected(target, ReplyStyle::Structured)?;
    let seen = error(&client.ask(C::BLOCK_STATUS, PLAIN, size - 512, 1024))?;
    ensure!(seen == WireError::EINVAL, "beyond the end it is {seen:?}");
    told(client.status(PLAIN, 0, 512)).map(drop)
}

fn payload(target: &Target) -> Outcome {
    target.writable(TransmissionFlags::NONE)?;
    let mut client = target.chunked(ReplyStyle::Extended, &[])?;
    let data = pattern(10, 4096);
    let chunks = client.ask_with(C::WRITE, CommandFlags::PAYLOAD_LEN, 0, 4096, &data);
    ensure!(chunks.iter().all(|(kind, _)| *kind == ChunkType::NONE), "a WRITE is answered by {chunks:?}");
    ensure!(content(&client.ask(C::READ, PLAIN, 0, 4096), 0, 4096)? == data, "it reads back otherwise");
    let seen = error(&client.ask_with(C::READ, CommandFlags::PAYLOAD_LEN, 0, 16, &[0; 16]))?;
    ensure!(seen == WireError::EINVAL, "a READ with a payload is {seen:?}");
    content(&client.ask(C::READ, PLAIN, 0, 512), 0, 512).map(drop)?;
    // The header's length has 64 bits: more than a READ may ask for, and no reason to leave.
    let seen = error(&client.ask(C::READ, PLAIN, 0, 1 << 40))?;
    ensure!(seen != WireError::OK, "a READ of a TiB succeeds");
    content(&client.ask(C::READ, PLAIN, 0, 512), 0, 512).map(drop)
}
