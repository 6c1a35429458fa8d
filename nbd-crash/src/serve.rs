//! Serves a state over NBD, writable: what is written is seen by clients and kept nowhere. The server's own sessions
//! do it, so any client is welcome.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use common::handshake::server::Encryption;
use common::uri::Uri;
use futures::stream::pending;

use nbd_server::buf::{Budget, IoBuf, Pool};
use nbd_server::device::{Backend, Shape, Support, leaf};
use nbd_server::durability::{EarlyLimits, Mode};
use nbd_server::epoch_store;
use nbd_server::export::{Export, Origin, Peer, Registry, Secrecy, Visible};
use nbd_server::listen::Listener;
use nbd_server::session::{self, End, Memory, Negotiated, Progress};
use nbd_server::transport::{Adapted, Stream};
use tempfile::TempDir;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::endpoint;
use crate::image::{Base, Image};

/// Bytes of payload that all clients together may have in flight.
const MEMORY_MAX: usize = 256 << 20;
/// How long a client may take to choose the export.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is served; it can be exchanged while clients are connected.
#[derive(Clone)]
pub struct Served {
    size: u64,
    content: Arc<Mutex<Image>>,
}

impl Served {
    /// Nothing but zeroes, of that many bytes.
    pub fn new(size: u64) -> Served {
        Served { size, content: Arc::new(Mutex::new(Image::new(Base::default()))) }
    }

    /// Puts a state in the place of what was there and of all that was written to it.
    pub fn show(&self, image: &Arc<Image>) {
        *self.content() = image.over();
    }

    /// Lets go of the state.
    pub fn clear(&self) {
        *self.content() = Image::new(Base::default());
    }

    fn content(&self) -> MutexGuard<'_, Image> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves it at an address, in a thread of its own, for as long as the process lives; gives the URI.
    pub fn serve(&self, address: &str, name: &str) -> anyhow::Result<Uri> {
        let (content, epoch) = (leaf(self.clone()), epoch_store::volatile());
        let export = Export::new(name.to_owned(), content, Mode::Writeback, EarlyLimits::default(), epoch);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(endpoint::listen(address))?;
        let uri = endpoint::uri(&listener, name)?;
        thread::Builder::new().name("serve".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, accept(&listener, Arc::new(export)));
        })?;
        Ok(uri)
    }

    /// Serves a device of `size` bytes at a socket in a directory of its own, which goes with the last of these.
    pub fn in_private(size: u64) -> anyhow::Result<(Served, Uri, TempDir)> {
        let (served, directory) = (Served::new(size), tempfile::tempdir()?);
        let socket = directory.path().join("state");
        let uri =
            served.serve(socket.to_str().context("the temporary directory has no name of text")?, "")?;
        Ok((served, uri, directory))
    }
}

impl Backend for Served {
    fn shape(&self) -> Shape {
        Shape { trim: Support::Emulate, ..Shape::capable(self.size) }
    }

    async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        self.content().read(at, &mut buf)?;
        Ok(buf)
    }

    async fn write(&self, at: u64, data: IoBuf) -> io::Result<()> {
        self.content().write(at, &data)
    }

    async fn flush(&self, _sync: usize) -> io::Result<()> {
        Ok(())
    }
}

async fn accept(listener: &Listener, export: Arc<Export>) {
    let exports = Rc::new(Registry::default());
    exports.add(export);
    let memory = Memory { pool: Arc::new(Pool::default()), budget: Budget::new(MEMORY_MAX) };
    loop {
        let (exports, memory) = (exports.clone(), memory.clone());
        match listener.accept().await.adopt() {
            Ok(Stream::Tcp(stream)) => drop(spawn_local(converse(stream, exports, memory))),
            Ok(Stream::Unix(stream)) => drop(spawn_local(converse(stream, exports, memory))),
            Ok(Stream::Vsock(stream)) => drop(spawn_local(converse(stream, exports, memory))),
            Err(error) => tracing::warn!(%error, "a client is turned away"),
        }
    }
}

async fn converse<S>(stream: S, exports: Rc<Registry>, memory: Memory)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut stream = Adapted(stream);
    let peer = Peer { origin: Origin::Host, names: Vec::new(), secrecy: Secrecy::Clear };
    let visible = Visible { registry: &exports, peer: &peer };
    let negotiation = session::negotiate(&mut stream, &visible, Encryption::Unavailable);
    match timeout(PATIENCE, negotiation).await.unwrap_or(Err(End::Stopped)) {
        Ok(Negotiated::Export(export, agreed)) => {
            let progress = Rc::new(Progress::default());
            let end = session::transmit(&mut stream, export, agreed, memory, pending(), progress).await;
            tracing::debug!("{end}");
        }
        Ok(Negotiated::StartTls(_)) => unreachable!("it is not offered"),
        Err(end) => tracing::debug!("{end}"),
    }
}
