//! The operator's side of a running server: a Unix socket that answers questions and takes orders.
//!
//! One JSON object per line each way, so that a shell script can speak it too; see [`message`]
//! for what is said. What was ordered is carried out even if whoever ordered it hangs up.

pub mod message;
mod sources;

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::confine::UnixAccess;
use crate::export::{Export, Registry};
use crate::listen::{ACCEPT_REST, SocketFile, unix_socket};
use message::{Answer, Request, Status};

pub use sources::look_again;

/// Bytes of one request; the longest has an export's name of 4096 bytes, each of them escaped.
const REQUEST_MAX: u64 = 32 << 10;
/// Operators at a time; more wait until one hangs up.
const OPERATORS_MAX: usize = 16;

/// A socket for operators.
pub struct Admin {
    listener: UnixListener,
    _file: SocketFile,
}

impl Admin {
    /// Listens at `path`, for this user only.
    pub fn listen(path: &Path) -> anyhow::Result<Admin> {
        let (listener, file) = unix_socket(path, UnixAccess::PRIVATE)?;
        Ok(Admin { listener, _file: file })
    }

    /// Serves operators for as long as it is polled.
    pub async fn serve(&self, exports: &Registry) -> std::convert::Infallible {
        let mut operators = FuturesUnordered::new();
        let mut rest = pin!(sleep(Duration::ZERO));
        rest.as_mut().await;
        loop {
            tokio::select! {
                () = &mut rest, if !rest.is_elapsed() => {}
                accepted = self.listener.accept(), if rest.is_elapsed() && operators.len() < OPERATORS_MAX => match accepted {
                    Ok((stream, _)) => operators.push(converse(stream, exports)),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept operators for now");
                        rest.as_mut().reset(Instant::now() + ACCEPT_REST);
                    }
                },
                Some(ended) = operators.next() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an operator's connection broke");
                    }
                }
            }
        }
    }
}

/// Answers one operator until it hangs up.
async fn converse(stream: UnixStream, exports: &Registry) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        (&mut read).take(REQUEST_MAX).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, exports).await.unwrap_or_else(Answer::Error),
            Err(error) => Answer::Error(format!("this is no request: {error}")),
        };
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        write.write_all(&answer).await?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
    }
}

/// Does what is asked; an error is a sentence.
async fn answer(request: Request, exports: &Registry) -> Result<Answer, String> {
    if let Request::List { export } = &request {
        let chosen = match export {
            Some(_) => vec![choose(exports, export.as_deref())?],
            None => exports.unclosed(),
        };
        look_again(&chosen).await;
        return Ok(Answer::Exports(chosen.iter().map(|export| Status::of(export)).collect()));
    }
    let export = choose(exports, request.export())?;
    tracing::info!(export = export.name(), ?request, "the operator orders");
    let span = export.span();
    match request {
        Request::List { .. } => {}
        Request::Mode { mode, .. } => {
            let mode = mode.parse()?;
            export.change_mode(mode).instrument(span).await.map_err(|error| error.to_string())?;
        }
        Request::Drain { .. } => {
            export.drain().instrument(span).await.map_err(|error| error.to_string())?;
        }
        Request::ClearPoison { .. } => {
            if !export.clear_poison().instrument(span).await {
                return Err("there is no poison to clear".into());
            }
        }
    }
    Ok(Answer::Exports(vec![Status::of(&export)]))
}

/// The export of that name, or the only one.
fn choose(exports: &Registry, name: Option<&str>) -> Result<Arc<Export>, String> {
    match name {
        Some(name) => exports.get(name).ok_or_else(|| format!("there is no export named {name:?}")),
        None => {
            let mut all = exports.all().into_iter();
            match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                _ => Err("there are several exports; say which (--export NAME)".into()),
            }
        }
    }
}
