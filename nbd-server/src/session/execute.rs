//! Runs one request on the export's device and answers it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use common::command::{Command, Span, Speed, Zeroing};
use common::handshake::context::Context;
use common::proto::WireError;
use nix::errno::Errno;
use recording::Tap;

use super::replies::{Body, Ticket};
use super::{read, status, tape};
use crate::buf::{IoBuf, Pool};
use crate::device::failed_at;
use crate::durability::Receipt;
use crate::export::Export;

/// What the requests of a connection share.
pub(super) struct Around {
    pub(super) export: Arc<Export>,
    /// The metadata contexts that its connection selected.
    pub(super) contexts: Vec<Context>,
    /// Where it is recorded.
    pub(super) tap: Option<Tap>,
    pub(super) pool: Arc<Pool>,
}

/// Answers a request that is not run.
pub(super) fn refuse(error: WireError, ticket: Ticket, around: &Around) {
    around.export.counters().failed();
    ticket.fail(error, "the request is not one that this export takes", None);
}

/// Runs the request and answers it, whatever happens.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn holds each of its arguments twice, and this is moved"
)]
pub(super) fn execute(
    cookie: u64,
    command: Command,
    payload: Option<IoBuf>,
    receipt: Receipt,
    ticket: Ticket,
    around: Rc<Around>,
) -> impl Future<Output = ()> {
    async move {
        let export = &around.export;
        export.counters().received(&command);
        let data = payload.as_deref().unwrap_or_default();
        let taped = around.tap.as_ref().and_then(|tap| tape::received(tap, cookie, &command, data));
        let done = run(&command, payload, &receipt, &around).await;
        if let Some(taped) = taped {
            taped.answers(done.as_ref().err().map_or(WireError::OK, |error| wire_error(&command, error)));
        }
        tracing::trace!(?command, succeeded = done.is_ok(), "done");
        match done {
            Ok(body) => ticket.succeed(body),
            Err(error) => {
                export.counters().failed();
                if is_refusal(&error) {
                    tracing::debug!(?command, %error, "request refused");
                } else {
                    tracing::warn!(?command, %error, "request failed");
                }
                ticket.fail(wire_error(&command, &error), &error.to_string(), failed_at(&error));
            }
        }
    }
}

/// Whether an error says nothing but that this cannot be had, which clients ask to find out.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

/// Runs a command; returns what goes into its answer.
async fn run(
    command: &Command,
    payload: Option<IoBuf>,
    receipt: &Receipt,
    around: &Around,
) -> io::Result<Body> {
    let device = around.export.device();
    match *command {
        Command::Cache(Span { len: 0, .. }) => Ok(()),
        Command::Read(Span { len: 0, .. }, _) => return Ok(Body::Parts(Vec::new())),
        Command::Read(span, chunks) => return read::read(span, chunks, receipt, around).await,
        Command::Cache(Span { at, len }) => device.cache(at, len).await,
        Command::Write(Span { len: 0, .. }, _)
        | Command::Trim(Span { len: 0, .. }, _)
        | Command::WriteZeroes(Span { len: 0, .. }, ..) => Ok(()),
        Command::Write(Span { at, .. }, fua) => {
            let data = payload.expect("the receiver delivers a WRITE with its payload");
            device.write(receipt, at, data, fua).await
        }
        Command::Flush => device.flush(receipt).await,
        Command::Trim(Span { at, len }, fua) => device.trim(receipt, at, len, fua).await,
        Command::WriteZeroes(Span { at, len }, how, fua) => device.zero(receipt, at, len, how, fua).await,
        Command::BlockStatus(span, extents, contexts) => {
            return status::status(span, extents, contexts, receipt, around).await;
        }
        Command::Filter | Command::Disconnect => unreachable!("the receiver deals with these"),
    }?;
    Ok(Body::Nothing)
}

/// The one function that turns a host error into a wire error ("Error values" in the spec).
fn wire_error(command: &Command, error: &io::Error) -> WireError {
    let must_be_fast = matches!(command, Command::WriteZeroes(_, Zeroing { speed: Speed::Fast, .. }, _));
    if must_be_fast && error.kind() == io::ErrorKind::Unsupported {
        return WireError::ENOTSUP;
    }
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => WireError::ENOSPC,
        Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => WireError::EPERM,
        _ => WireError::EIO,
    }
}
