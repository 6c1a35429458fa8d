//! Scripts about which data a range holds in the end (C1, C4, and zeroes that are zero).

use std::io::Write;

use anyhow::{Result, bail, ensure};
use common::proto::{CommandFlags, CommandType, TransmissionFlags, WireError};

use super::running::{APART, BLOCK, NEW, OLD, Running, accepted, offered, send};
use super::subject::Isolation;
use super::{Outcome, Subject};
use crate::client::{Client, PLAIN};
use crate::trace::{Trace, What};
use crate::wait_until;

const MIB: usize = 1 << 20;

/// Where the long WRITE_ZEROES begins, and how long it is: longer than the buffers and the
/// payloads of any server, and aligned to nothing.
const ZEROES: (usize, usize) = (MIB + 1001, 66 * MIB - 1234);

/// A long WRITE_ZEROES zeroes its whole range or is answered with an error, and touches nothing
/// beside it.
pub(super) fn long_zeroes(subject: &Subject, inject: &[&str]) -> Outcome {
    let mut running = Running::of(subject, 72 * MIB, inject)?;
    let mut client = running.connect()?;
    offered(&client, TransmissionFlags::SEND_WRITE_ZEROES)?;
    let (start, len) = ZEROES;
    client.send(CommandType::WRITE_ZEROES, PLAIN, start as u64, u32::try_from(len)?);
    let error = client.try_reply()?.error;
    if offered(&client, TransmissionFlags::SEND_FLUSH).is_ok() {
        let _brought_to_the_file = client.flush();
    }
    let content = running.disk.content();
    let (before, rest) = content.split_at(start);
    let (zeroed, after) = rest.split_at(len);
    let old = |range: &[u8]| range == vec![OLD; range.len()];
    ensure!(old(before) && old(after), "data beside the range was changed");
    if error == WireError::OK && zeroed != vec![0; len] {
        let left = zeroed.iter().filter(|byte| **byte != 0).count();
        bail!("{left} of {len} bytes are not zero after the WRITE_ZEROES was answered OK");
    }
    Ok(())
}

/// How much of a WRITE is announced, and how much of that is sent.
const ANNOUNCED: u32 = 4 << 20;
const SENT: usize = 3 << 20;

/// A WRITE whose payload never arrives whole has no effect.
pub(super) fn half_write(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &[])?;
    let mut client = running.connect()?;
    let mut out = Vec::new();
    client.encode(&mut out, CommandType::WRITE, PLAIN, MIB as u64, ANNOUNCED);
    out.extend_from_slice(&vec![NEW; SENT]);
    client.socket.write_all(&out)?;
    drop(client);
    let (_, content) = running.terminate(Vec::new())?;
    let changed = content.iter().filter(|byte| **byte != OLD).count();
    ensure!(changed == 0, "{changed} bytes of a WRITE that never arrived whole are in the file");
    Ok(())
}

/// A request that is still being carried out when its connection dies does not overwrite what
/// another connection had acknowledged since.
pub(super) fn stalled(subject: &Subject) -> Outcome {
    match subject.isolation {
        Isolation::Shared => stalled_zeroes(subject),
        Isolation::PerConnection => stalled_write(subject),
    }
}

/// Where all connections share their threads, the stalled call must be one that the later request
/// does not need: zeroes stall, data does not.
fn stalled_zeroes(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &["fallocate:delay_enter=1500ms"])?;
    let mut doomed = running.connect()?;
    offered(&doomed, TransmissionFlags::SEND_WRITE_ZEROES)?;
    send(&mut doomed, CommandType::WRITE_ZEROES, PLAIN, APART, NEW);
    wait_until("the zeroes to stall", || running.has_begun(What::Fallocate(APART)));
    drop(doomed);
    let mut later = running.connect()?;
    accepted(&mut later, CommandType::WRITE, PLAIN, APART)?;
    let ended = |trace: &Trace| trace.count(What::Fallocate(APART)) > 0;
    wait_until("the zeroes to end", || ended(&Trace::parse(&running.said_so_far())));
    kept(&mut later, "WRITE_ZEROES")
}

/// Requests that keep every thread of a connection busy once.
const WARM_UP: u64 = 64;
/// What the stalled write is full of.
const STALE: u8 = 0x11;

/// Where every connection has threads of its own, the first write of each thread stalls; the later
/// connection has got over that before.
fn stalled_write(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &["pwrite64,pwritev,pwritev2:delay_enter=1500ms:when=1"])?;
    let mut later = running.connect()?;
    for n in 0..WARM_UP {
        send(&mut later, CommandType::WRITE, PLAIN, (4 + n) * u64::from(BLOCK) + MIB as u64, NEW);
    }
    while later.outstanding() > 0 {
        later.try_reply()?;
    }
    let mut doomed = running.connect()?;
    send(&mut doomed, CommandType::WRITE, PLAIN, APART, STALE);
    wait_until("the write to stall", || running.has_begun(What::Write(APART)));
    drop(doomed);
    accepted(&mut later, CommandType::WRITE, PLAIN, APART)?;
    let ended = |trace: &Trace| trace.count(What::Write(APART)) + trace.count(What::DurableWrite(APART)) > 1;
    wait_until("both writes to end", || ended(&Trace::parse(&running.said_so_far())));
    kept(&mut later, "WRITE")
}

/// The later connection still reads what it wrote.
fn kept(later: &mut Client, stalled: &str) -> Result<()> {
    later.send(CommandType::READ, CommandFlags::NONE, APART, BLOCK);
    let reply = later.try_reply()?;
    ensure!(reply.error == WireError::OK, "the READ was answered {:?}", reply.error);
    ensure!(
        reply.data == [NEW; BLOCK as usize],
        "a {stalled} of a dead connection replaced data that was acknowledged after that connection's end"
    );
    Ok(())
}
