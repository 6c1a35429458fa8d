//! Scripts about the end of a connection (C9) and of the server.

use std::io::Write;

use anyhow::{Result, ensure};
use common::proto::{CommandType, SIMPLE_REPLY_HEADER_LEN};

use super::running::{APART, BLOCK, NEW, PLACE, Running, accepted, stable_before};
use super::{Outcome, Subject};
use crate::client::PLAIN;
use crate::seen;
use crate::trace::{Event, Trace, What};

/// Writes that are outstanding when the client disconnects.
const OUTSTANDING: usize = 32;

/// DISC loses nothing that was received before it.
pub(super) fn disc(subject: &Subject) -> Outcome {
    let (running, _replies) = disconnected(subject)?;
    // A server that closes too early, or that caches what it acknowledged, may still do it.
    let missing = || missing(&running.disk.content(), OUTSTANDING);
    let done = seen(|| (missing() == 0).then_some(()));
    ensure!(done.is_some(), "{} of {OUTSTANDING} writes were never carried out", missing());
    Ok(())
}

/// DISC waits for everything received before it, and closes only then.
pub(super) fn disc_answers(subject: &Subject) -> Outcome {
    let (_running, replies) = disconnected(subject)?;
    let answered = replies.len() / SIMPLE_REPLY_HEADER_LEN;
    let left = OUTSTANDING - answered;
    ensure!(left == 0, "{left} of {OUTSTANDING} writes were not answered when the server closed");
    Ok(())
}

/// When the server closes after DISC, the file holds everything received before it.
pub(super) fn disc_drains(subject: &Subject) -> Outcome {
    let (running, _replies) = disconnected(subject)?;
    let missing = missing(&running.disk.content(), OUTSTANDING);
    ensure!(missing == 0, "{missing} of {OUTSTANDING} writes were not in the file when the server closed");
    Ok(())
}

/// Sends many writes and DISC in one go; returns all that came until the server closed.
fn disconnected(subject: &Subject) -> Result<(Running<'_>, Vec<u8>)> {
    // Each write takes so long that most of them are outstanding when DISC arrives.
    let mut running = Running::start(subject, &["pwrite64,pwritev,pwritev2:delay_enter=50ms"])?;
    let mut client = running.connect()?;
    let mut out = Vec::new();
    for n in 0..OUTSTANDING {
        client.encode(&mut out, CommandType::WRITE, PLAIN, n as u64 * APART, BLOCK);
        out.extend_from_slice(&[NEW; BLOCK as usize]);
    }
    client.encode(&mut out, CommandType::DISC, PLAIN, 0, 0);
    client.socket.write_all(&out)?;
    let replies = client.socket.until_closed();
    Ok((running, replies))
}

/// Writes that are acknowledged before SIGTERM.
const ACKNOWLEDGED: usize = 8;

/// What was acknowledged before SIGTERM is in the file afterwards.
pub(super) fn sigterm(subject: &Subject) -> Outcome {
    let (_, content) = terminated(subject)?;
    let missing = missing(&content, ACKNOWLEDGED);
    ensure!(missing == 0, "{missing} of {ACKNOWLEDGED} acknowledged writes are not in the file");
    Ok(())
}

/// What was acknowledged before SIGTERM is stable when the server has ended.
pub(super) fn sigterm_syncs(subject: &Subject) -> Outcome {
    let (trace, _) = terminated(subject)?;
    let end = Event { what: What::Sync, began: usize::MAX, ended: usize::MAX, succeeded: false };
    for n in 0..ACKNOWLEDGED {
        stable_before(&trace, CommandType::WRITE, n as u64 * APART, end, "the end of the server")?;
    }
    Ok(())
}

fn terminated(subject: &Subject) -> Result<(Trace, Vec<u8>)> {
    let mut running = Running::start(subject, &[])?;
    let mut client = running.connect()?;
    for n in 0..ACKNOWLEDGED {
        accepted(&mut client, CommandType::WRITE, PLAIN, n as u64 * APART)?;
    }
    running.terminate(vec![client])
}

/// How many of the first places do not hold [`NEW`].
fn missing(content: &[u8], places: usize) -> usize {
    let blocks = content.chunks(PLACE).take(places);
    blocks.filter(|place| place[..BLOCK as usize] != [NEW; BLOCK as usize]).count()
}
