//! The operator's side of a running server: a Unix socket that answers questions and takes orders.
//!
//! One JSON object per line each way, so that a shell script can speak it too; see [`message`]
//! for what is said. What was ordered is carried out even if whoever ordered it hangs up.

pub mod message;
mod sources;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use futures::stream::FuturesUnordered;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
/// Operators at a time. Who comes when there are so many takes the place of who has said nothing for longest.
const OPERATORS_MAX: usize = 16;

/// A socket for operators.
pub struct Admin {
    listener: UnixListener,
    _file: SocketFile,
    /// A descriptor that makes room for an operator when clients have taken all others.
    spare: RefCell<Option<OwnedFd>>,
}

impl Admin {
    /// Listens at `path`, for this user only.
    pub fn listen(path: &Path) -> anyhow::Result<Admin> {
        let (listener, file) = unix_socket(path, UnixAccess::PRIVATE)?;
        let admin = Admin { listener, _file: file, spare: RefCell::default() };
        admin.keep_spare();
        Ok(admin)
    }

    /// Serves operators for as long as it is polled.
    pub async fn serve(&self, exports: &Registry) -> std::convert::Infallible {
        let mut operators = Operators::default();
        let mut rest = pin!(sleep(Duration::ZERO));
        rest.as_mut().await;
        loop {
            tokio::select! {
                () = &mut rest, if !rest.is_elapsed() => {}
                accepted = self.listener.accept(), if rest.is_elapsed() && operators.have_room() => match accepted {
                    Ok((stream, _)) => operators.add(stream, exports),
                    Err(error) => {
                        // Without a descriptor it cannot be tried whether there is anybody.
                        let next = Instant::now() + ACCEPT_REST;
                        if !self.somebody_waits() {
                            rest.as_mut().reset(next);
                        } else if self.spare.take().is_none() && !operators.dismiss_idle(ACCEPT_REST) {
                            tracing::warn!(%error, "cannot accept operators for now");
                            rest.as_mut().reset(next);
                        }
                    }
                },
                Some(ended) = operators.talking.next() => {
                    // Before clients take what the operator has given back.
                    self.keep_spare();
                    if let Ok(Err(error)) = ended {
                        tracing::debug!(%error, "an operator's connection broke");
                    }
                }
            }
        }
    }

    fn somebody_waits(&self) -> bool {
        let mut listener = [PollFd::new(&self.listener, PollFlags::IN)];
        poll(&mut listener, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    fn keep_spare(&self) {
        let mut spare = self.spare.borrow_mut();
        if spare.is_none() {
            // Where there is none left, operators wait like clients.
            *spare = self.listener.as_fd().try_clone_to_owned().ok();
        }
    }
}

type Talk<'a> = Abortable<Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>>;

/// Those who are connected.
#[derive(Default)]
struct Operators<'a> {
    talking: FuturesUnordered<Talk<'a>>,
    known: Vec<(AbortHandle, Rc<Cell<Option<Instant>>>)>,
}

impl<'a> Operators<'a> {
    /// Whether another one can be heard; who has said nothing for longest makes room for it.
    fn have_room(&mut self) -> bool {
        self.talking.len() < OPERATORS_MAX || self.known.iter().any(|(_, idle)| idle.get().is_some())
    }

    fn add(&mut self, stream: UnixStream, exports: &'a Registry) {
        if self.talking.len() >= OPERATORS_MAX {
            self.dismiss_idle(Duration::ZERO);
        }
        let (handle, registration) = AbortHandle::new_pair();
        let idle = Rc::new(Cell::new(Some(Instant::now())));
        self.known.retain(|(_, idle)| Rc::strong_count(idle) > 1);
        self.known.push((handle, idle.clone()));
        let talk = Box::pin(async move { converse(stream, exports, &idle).await });
        self.talking.push(Abortable::new(talk, registration));
    }

    /// Hangs up on who has said nothing for longest, if that is at least so long.
    fn dismiss_idle(&mut self, least: Duration) -> bool {
        let is_idle = |idle: &Cell<Option<Instant>>| idle.get().is_some_and(|since| since.elapsed() >= least);
        let idle = self.known.iter().filter(|(handle, idle)| !handle.is_aborted() && is_idle(idle));
        let Some((handle, _)) = idle.min_by_key(|(_, idle)| idle.get()) else { return false };
        handle.abort();
        true
    }
}

/// Answers one operator until it hangs up. `idle` tells since when nothing is done for it.
async fn converse(stream: UnixStream, exports: &Registry, idle: &Cell<Option<Instant>>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        (&mut read).take(REQUEST_MAX).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        idle.set(None);
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, exports).await.unwrap_or_else(Answer::Error),
            Err(error) => Answer::Error(format!("this is no request: {error}")),
        };
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        idle.set(Some(Instant::now()));
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
