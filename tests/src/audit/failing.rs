//! Scripts about disks that fail: whose request is told, and that no success follows a failed
//! sync (E1). The faults are injected by `strace` into the system calls of any server.

use std::io;

use anyhow::{Result, ensure};
use common::proto::{CommandFlags, CommandType, TransmissionFlags, WireError};

use super::running::{APART, Running, accepted, ask, flag_of, offered};
use super::stable::plain;
use super::subject::Isolation;
use super::{Outcome, Subject};
use crate::client::{Client, FUA, PLAIN};

/// No data can be written.
const NO_WRITE: &str = "pwrite64,pwritev,pwritev2:error=EIO";
/// There is no space for data.
const NO_SPACE: &str = "pwrite64,pwritev,pwritev2:error=ENOSPC";

const FAILED: &str = "although no sync had succeeded";

/// A request with FUA whose sync fails is not answered with success.
pub(super) fn fua(subject: &Subject, command: CommandType) -> Outcome {
    let mut running = without_sync(subject)?;
    let mut client = running.connect()?;
    offered(&client, flag_of(command) | TransmissionFlags::SEND_FUA)?;
    refused(&mut client, command, FUA, FAILED)
}

/// A FLUSH whose sync fails is not answered with success.
pub(super) fn flush(subject: &Subject) -> Outcome {
    let mut running = without_sync(subject)?;
    let mut client = running.connect()?;
    offered(&client, TransmissionFlags::SEND_FLUSH)?;
    // Where a write is stable before its reply, this is the one that fails.
    let _any = plain(&mut client, APART)?;
    refused(&mut client, CommandType::FLUSH, PLAIN, FAILED)
}

/// Who asks for a FLUSH after one has failed.
#[derive(Clone, Copy)]
pub(super) enum Whose {
    /// The connection whose FLUSH failed.
    Same,
    /// One that was open at that time.
    Another,
    /// One made later.
    New,
}

/// After a failed FLUSH the disk works again, and yet no FLUSH succeeds: what was acknowledged
/// before is lost, and the kernel says so only once.
pub(super) fn flush_again(subject: &Subject, whose: Whose) -> Outcome {
    let mut running = without_sync(subject)?;
    let (mut same, mut another) = (running.connect()?, running.connect()?);
    offered(&same, TransmissionFlags::SEND_FLUSH)?;
    if matches!(whose, Whose::Another) {
        offered(&same, TransmissionFlags::CAN_MULTI_CONN)?;
    }
    let _any = plain(&mut same, APART)?;
    refused(&mut same, CommandType::FLUSH, PLAIN, FAILED)?;
    if subject.isolation == Isolation::PerConnection {
        // A real kernel tells each descriptor once, so this one is told as well before the disk
        // is whole again.
        let _told = ask(&mut another, CommandType::FLUSH, PLAIN, 0)?;
    }
    running.mend();
    let mut client = match whose {
        Whose::Same => same,
        Whose::Another => another,
        Whose::New => running.connect()?,
    };
    refused(
        &mut client,
        CommandType::FLUSH,
        PLAIN,
        "although an earlier FLUSH had failed and its data is lost",
    )
}

/// After the sync of a FUA write has failed, no FLUSH succeeds: the sync may have been that of
/// other writes as well.
pub(super) fn flush_after_fua(subject: &Subject) -> Outcome {
    let mut running = without_sync(subject)?;
    let mut client = running.connect()?;
    offered(&client, TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_FLUSH)?;
    let _any = plain(&mut client, APART)?;
    refused(&mut client, CommandType::WRITE, FUA, FAILED)?;
    running.mend();
    refused(&mut client, CommandType::FLUSH, PLAIN, "although a sync had failed before and its data is lost")
}

/// A write that cannot be carried out is answered with an error.
pub(super) fn write(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &[NO_WRITE])?;
    let mut client = running.connect()?;
    refused(&mut client, CommandType::WRITE, PLAIN, "although the data could not be written")
}

/// A write for which there is no space is answered so.
pub(super) fn no_space(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &[NO_SPACE])?;
    let mut client = running.connect()?;
    let error = plain(&mut client, APART)?;
    ensure!(error == WireError::ENOSPC, "the WRITE was answered {error:?}");
    Ok(())
}

/// Once there is space again, writes and flushes succeed.
pub(super) fn space_again(subject: &Subject) -> Outcome {
    let mut running = Running::start(subject, &[NO_SPACE])?;
    let mut client = running.connect()?;
    let flush = offered(&client, TransmissionFlags::SEND_FLUSH).is_ok();
    let error = plain(&mut client, APART)?;
    ensure!(error != WireError::OK, "the WRITE was answered OK although there was no space for it");
    running.mend();
    accepted(&mut client, CommandType::WRITE, PLAIN, APART)?;
    if flush {
        accepted(&mut client, CommandType::FLUSH, PLAIN, 0)?;
    }
    Ok(())
}

/// A server none of whose syncs succeeds.
fn without_sync(subject: &Subject) -> Result<Running<'_>> {
    Running::start(subject, &[&format!("{}:error=EIO", subject.syncs)])
}

/// The request is answered with an error, or not at all because the server closes.
fn refused(client: &mut Client, command: CommandType, flags: CommandFlags, although: &str) -> Result<()> {
    match ask(client, command, flags, APART) {
        Ok((_, error)) => {
            let fua = if flags == FUA { " with FUA" } else { "" };
            ensure!(error != WireError::OK, "the {command:?}{fua} was answered OK {although}");
            Ok(())
        }
        Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Ok(()),
            _ => Err(error),
        },
    }
}
