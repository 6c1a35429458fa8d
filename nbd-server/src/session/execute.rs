//! Runs one request on the export's device and answers it.

use std::io;
use std::sync::Arc;

use common::command::{Command, Span};
use common::proto::WireError;
use nix::errno::Errno;

use super::receive::What;
use super::replies::Ticket;
use crate::buf::{IoBuf, Pool};
use crate::device::Device;
use crate::export::Export;

/// Runs the request and answers it, whatever happens.
pub(super) async fn execute(what: What, ticket: Ticket, export: Arc<Export>, pool: Arc<Pool>) {
    let (command, payload) = match what {
        What::Refuse(error) => {
            export.counters().failed();
            return ticket.fail(error);
        }
        What::Run(command, payload) => (command, payload),
    };
    export.counters().received(&command);
    match run(&command, payload, export.device(), &pool).await {
        Ok(data) => ticket.succeed(data),
        Err(error) => {
            export.counters().failed();
            tracing::warn!(export = export.name(), ?command, %error, "request failed");
            ticket.fail(wire_error(&error));
        }
    }
}

/// Runs a command; a READ returns its data.
async fn run(
    command: &Command,
    payload: Option<IoBuf>,
    device: &dyn Device,
    pool: &Arc<Pool>,
) -> io::Result<Option<IoBuf>> {
    match *command {
        Command::Read(Span { len: 0, .. }) => Ok(()),
        Command::Read(Span { at, len }) => {
            return device.read(at, pool.take(len as usize)).await.map(Some);
        }
        Command::Write(Span { len: 0, .. }, _)
        | Command::Trim(Span { len: 0, .. }, _)
        | Command::WriteZeroes(Span { len: 0, .. }, ..) => Ok(()),
        Command::Write(Span { at, .. }, fua) => {
            let data = payload.expect("the receiver delivers a WRITE with its payload");
            device.write(at, data, fua).await
        }
        Command::Flush => device.flush().await,
        Command::Trim(Span { at, len }, fua) => device.trim(at, len.into(), fua).await,
        Command::WriteZeroes(Span { at, len }, hole, fua) => device.zero(at, len.into(), hole, fua).await,
        Command::Disconnect => unreachable!("the receiver ends the connection"),
    }?;
    Ok(None)
}

/// The one function that turns a host error into a wire error ("Error values" in the spec).
fn wire_error(error: &io::Error) -> WireError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => WireError::ENOSPC,
        Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => WireError::EPERM,
        _ => WireError::EIO,
    }
}
