//! Scripts about what is stable once something was answered (C5, C6).

use anyhow::{Context, Result, ensure};
use common::proto::{CommandFlags, CommandType, TransmissionFlags, WireError};

use super::running::{APART, NEW, REPLY, Running, accepted, ask, flag_of, offered, send, stable_before};
use super::{NoFinding, Outcome, Subject};
use crate::client::{Client, FUA, PLAIN};
use crate::trace::{Event, Trace, What};

/// The flag is advertised.
pub(super) fn advertises(subject: &Subject, flag: TransmissionFlags) -> Outcome {
    let client = Running::start(subject, &[])?.connect()?;
    let seen = client.export.flags;
    ensure!(seen.contains(flag), "the server advertises {seen:?}, so no client can ask for durability");
    Ok(())
}

/// A request with FUA is stable before its reply.
pub(super) fn fua(subject: &Subject, command: CommandType) -> Outcome {
    let mut running = Running::start(subject, &[])?;
    let mut client = running.connect()?;
    offered(&client, flag_of(command) | TransmissionFlags::SEND_FUA)?;
    let mut flags = vec![FUA];
    if command == CommandType::WRITE_ZEROES {
        flags.push(FUA | CommandFlags::NO_HOLE);
    }
    for (at, flags) in (1..).map(|n| n * APART).zip(flags) {
        let cookie = accepted(&mut client, command, flags, at)?;
        let trace = running.trace_until(cookie);
        stable_before(&trace, command, at, reply(&trace, cookie)?, REPLY)?;
    }
    Ok(())
}

/// Plain requests are stable before their replies.
pub(super) fn writethrough(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &[])?;
    let mut client = running.connect()?;
    for (at, command) in (1..).map(|n| n * APART).zip(WRITING) {
        if offered(&client, flag_of(command)).is_ok() {
            let cookie = accepted(&mut client, command, PLAIN, at)?;
            let trace = running.trace_until(cookie);
            stable_before(&trace, command, at, reply(&trace, cookie)?, REPLY)?;
        }
    }
    Ok(())
}

/// Whose FLUSH is to cover a request.
#[derive(Clone, Copy)]
pub(super) enum By {
    Same,
    Another,
}

/// Everything that writes.
pub(super) const WRITING: [CommandType; 3] =
    [CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES];

/// A FLUSH makes stable what was answered before.
pub(super) fn flush(subject: &Subject, commands: &[CommandType], by: By) -> Outcome {
    let mut running = Running::start(subject, &[])?;
    let mut writer = running.connect()?;
    offered(&writer, TransmissionFlags::SEND_FLUSH)?;
    let mut another = match by {
        By::Same => None,
        By::Another => {
            offered(&writer, TransmissionFlags::CAN_MULTI_CONN)?;
            Some(running.connect()?)
        }
    };
    let mut tried = 0;
    for (at, command) in (1..).map(|n| n * APART).zip(commands.iter().copied()) {
        if offered(&writer, flag_of(command)).is_err() {
            continue;
        }
        accepted(&mut writer, command, PLAIN, at)?;
        let flusher = another.as_mut().unwrap_or(&mut writer);
        let flush = accepted(flusher, CommandType::FLUSH, PLAIN, 0)?;
        let trace = running.trace_until(flush);
        stable_before(&trace, command, at, reply(&trace, flush)?, REPLY)?;
        tried += 1;
    }
    if tried == 0 { Err(NoFinding::NotOffered.into_error()) } else { Ok(()) }
}

/// How many connections write and flush while others' syncs run.
const CROWD: usize = 4;
/// How often each does.
const ROUNDS: u64 = 3;

/// A FLUSH that arrives while a sync runs is not answered by that sync.
pub(super) fn crowd(subject: &Subject) -> Outcome {
    // Slow enough for all others to write and to ask for their flush in the meantime.
    let mut running = Running::start(subject, &[&format!("{}:delay_enter=300ms", subject.syncs)])?;
    let mut clients = Vec::new();
    for _ in 0..CROWD {
        clients.push(running.connect()?);
    }
    offered(&clients[0], TransmissionFlags::SEND_FLUSH)?;
    let mut flushes = Vec::new();
    for round in 0..ROUNDS {
        let places = (0..).map(|n| (1 + n + round * CROWD as u64) * APART);
        for (at, client) in places.zip(&mut clients) {
            // The reply to the FLUSH of the round before may come first.
            let write = send(client, CommandType::WRITE, PLAIN, at, NEW);
            take(client, |answered| answered == write)?;
            flushes.push((at, send(client, CommandType::FLUSH, PLAIN, 0, NEW)));
        }
    }
    for client in &mut clients {
        while client.outstanding() > 0 {
            take(client, |_| true)?;
        }
    }
    let mut met_a_sync = 0;
    for (at, flush) in flushes {
        let trace = running.trace_until(flush);
        stable_before(&trace, CommandType::WRITE, at, reply(&trace, flush)?, REPLY)?;
        let request = trace.find(What::Request(flush));
        met_a_sync += usize::from(request.is_some_and(|request| in_a_sync(&trace, request)));
    }
    if met_a_sync == 0 && !subject.is_writethrough() {
        return Err(NoFinding::Unseen("no FLUSH arrived while a sync ran".to_owned()).into_error());
    }
    Ok(())
}

fn in_a_sync(trace: &Trace, moment: Event) -> bool {
    let mut syncs = trace.0.iter().filter(|event| event.what == What::Sync);
    syncs.any(|sync| sync.began < moment.ended && sync.ended > moment.ended)
}

/// Takes successful replies until one is enough.
fn take(client: &mut Client, enough: impl Fn(u64) -> bool) -> Result<()> {
    loop {
        let reply = client.try_reply()?;
        ensure!(reply.error == WireError::OK, "a request was answered {:?}", reply.error);
        if enough(reply.cookie) {
            return Ok(());
        }
    }
}

/// Sends a plain WRITE; returns what it was answered.
pub(super) fn plain(client: &mut Client, at: u64) -> Result<WireError> {
    Ok(ask(client, CommandType::WRITE, PLAIN, at)?.1)
}

/// The successful reply to a request.
pub(super) fn reply(trace: &Trace, cookie: u64) -> Result<Event> {
    trace.find(What::Reply(cookie, 0)).context("the trace does not show the reply")
}
