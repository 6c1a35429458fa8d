//! Runs one request on the export's device and answers it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use common::command::{Command, Span};
use common::handshake::context::Context;
use common::proto::WireError;
use common::reply::Extent;
use nix::errno::Errno;

use super::receive::What;
use super::replies::{Body, Ticket};
use crate::buf::{IoBuf, Pool};
use crate::export::Export;

/// What surrounds a request.
pub(super) struct Around {
    pub(super) export: Arc<Export>,
    /// The metadata contexts that its connection selected.
    pub(super) contexts: Rc<[Context]>,
    pub(super) pool: Arc<Pool>,
}

/// Runs the request and answers it, whatever happens.
pub(super) async fn execute(what: What, ticket: Ticket, around: Around) {
    let export = &around.export;
    let (command, payload) = match what {
        What::Refuse(error) => {
            export.counters().failed();
            return ticket.fail(error, "the request is not one that this export takes");
        }
        What::Run(command, payload) => (command, payload),
    };
    export.counters().received(&command);
    let done = run(&command, payload, &around).await;
    tracing::trace!(?command, succeeded = done.is_ok(), "done");
    match done {
        Ok(body) => ticket.succeed(body),
        Err(error) => {
            export.counters().failed();
            tracing::warn!(export = export.name(), ?command, %error, "request failed");
            ticket.fail(wire_error(&error), &error.to_string());
        }
    }
}

/// Runs a command; returns what goes into its answer.
async fn run(command: &Command, payload: Option<IoBuf>, around: &Around) -> io::Result<Body> {
    let device = around.export.device();
    match *command {
        Command::Read(Span { len: 0, .. }) => Ok(()),
        Command::Read(Span { at, len }) => {
            let data = device.read(at, around.pool.take(len as usize)).await?;
            return Ok(Body::Data(at, data));
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
        Command::BlockStatus(span) => return Ok(Body::Extents(status(span, &around.contexts))),
        Command::Disconnect => unreachable!("the receiver ends the connection"),
    }?;
    Ok(Body::Nothing)
}

/// What each selected context says about a range. The only kind of context there is says that the
/// range belongs to the epoch, which its name has told already.
fn status(span: Span, contexts: &[Context]) -> Vec<(u32, Vec<Extent>)> {
    let whole = Extent { length: span.len, status: 0 };
    contexts.iter().map(|context| (context.id, vec![whole])).collect()
}

/// The one function that turns a host error into a wire error ("Error values" in the spec).
fn wire_error(error: &io::Error) -> WireError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => WireError::ENOSPC,
        Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => WireError::EPERM,
        _ => WireError::EIO,
    }
}
