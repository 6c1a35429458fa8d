//! An export: a name, the promises about its storage, and what it tells clients about itself.
//!
//! The only place that turns a [`Shape`] into transmission flags.

mod door;
mod registry;
mod source;

use std::any::Any;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use common::command::Terms;
use common::handshake::context::Agreed;
use common::handshake::{self, BlockSizes};
use common::proto::{PAYLOAD_MAX, PAYLOAD_TAKEN_MAX, TransmissionFlags};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use recording::{Recorder, Tap, What};

use crate::device::{Device, Shape, Support};
use crate::durability::epoch::Epoch;
use crate::durability::{ChangeError, Durability, EarlyLimits, Health, Mode};
use crate::metrics::Counters;
use door::Door;

pub use door::{Admission, Origin, Peer, Secrecy, Visit};
pub use registry::{Registry, Visible};
pub use source::{Found, Source};

/// The metadata context that tells holes from data.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";
/// The metadata context that tells the epoch, which follows in sixteen hexadecimal digits. Its
/// extents say nothing more.
const EPOCH_CONTEXT: &str = "x-nbd-durability:epoch=";
/// Smallest request in bytes. Storage is reached through the page cache, which takes any.
const BLOCK_MIN: u32 = 1;

/// One export, shared by all its connections.
pub struct Export {
    name: String,
    durability: Durability,
    counters: Arc<Counters>,
    door: Door,
    /// What the operator has to say about it.
    text: RwLock<Option<String>>,
    recorder: OnceLock<Arc<Recorder>>,
    source: OnceLock<Arc<Source>>,
    /// What keeps others off it. It goes after the storage.
    lock: OnceLock<Arc<dyn Any + Send + Sync>>,
    released: Shared<oneshot::Receiver<()>>,
    /// The last field: it goes once everything else is let go of.
    _release: oneshot::Sender<()>,
}

impl Export {
    /// Serves `storage` with the promises of `mode`.
    #[must_use]
    pub fn new(
        name: String,
        storage: Arc<dyn Device>,
        mode: Mode,
        limits: EarlyLimits,
        epoch: Epoch,
    ) -> Export {
        let durability = Durability::over(&name, storage, mode, limits, epoch);
        let door = Door::new(Admission::default());
        let (_release, released) = oneshot::channel();
        Export {
            name,
            durability,
            counters: Arc::default(),
            door,
            text: RwLock::default(),
            recorder: OnceLock::new(),
            source: OnceLock::new(),
            lock: OnceLock::new(),
            released: released.shared(),
            _release,
        }
    }

    /// Says who may use it from now on, and what people are told about it. Connections that may not be any more are
    /// asked to end; tells how many they are.
    pub fn present(&self, text: Option<String>, admission: Admission) -> usize {
        *self.text.write().unwrap_or_else(PoisonError::into_inner) = text;
        self.door.change(admission)
    }

    /// Says which file or device it serves, and gives it the lock on that to hold.
    ///
    /// # Panics
    /// When that was said already.
    pub fn serves(&self, source: Source, lock: Arc<dyn Any + Send + Sync>) {
        let is_first = self.source.set(Arc::new(source)).is_ok() && self.lock.set(lock).is_ok();
        assert!(is_first, "an export serves one file");
    }

    /// The file or device that it serves, if it serves one.
    #[must_use]
    pub fn source(&self) -> Option<&Arc<Source>> {
        self.source.get()
    }

    /// Resolves once nobody holds it any more, and its file and lock are let go of with it.
    pub fn released(&self) -> impl Future<Output = ()> + Unpin + Send + 'static + use<> {
        self.released.clone().map(|_sender_is_gone| ())
    }

    /// Records what its connections ask from now on.
    ///
    /// # Panics
    /// When it is recorded already.
    pub fn record(&self, recorder: Arc<Recorder>) {
        assert!(self.recorder.set(recorder).is_ok(), "an export is recorded once");
    }

    /// A new connection's share in the recording, if there is one.
    #[must_use]
    pub fn tap(&self) -> Option<Tap> {
        let tap = self.recorder.get()?.connect();
        tap.inspect_err(|error| tracing::error!(%error, "the recording ends here")).ok()
    }

    /// The transmission flags that every client is told.
    #[must_use]
    pub fn flags(&self) -> TransmissionFlags {
        transmission_flags(self.shape())
    }

    /// The name clients ask for; empty for the default export.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its storage, with its promises.
    #[must_use]
    pub fn device(&self) -> &Durability {
        &self.durability
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What a connection is held to.
    #[must_use]
    pub fn terms(&self, agreed: &Agreed) -> Terms {
        let shape = self.shape();
        Terms {
            size: shape.size,
            flags: transmission_flags(shape) | agreed.style.flags(),
            block_min: BLOCK_MIN,
            payload_max: PAYLOAD_TAKEN_MAX,
            contexts: u32::try_from(agreed.contexts.len()).expect("an export has few contexts"),
            style: agreed.style,
        }
    }

    /// In which its work is logged, so that every line names it.
    #[must_use]
    pub fn span(&self) -> tracing::Span {
        tracing::info_span!("work", export = self.name)
    }

    /// What it may acknowledge before data is safe.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.durability.mode()
    }

    /// Changes the mode under the feet of its connections. Everything acknowledged before is
    /// stable when this returns.
    ///
    /// # Errors
    /// The old mode stays in force.
    pub async fn change_mode(&self, to: Mode) -> Result<(), ChangeError> {
        self.durability.change(to).await
    }

    /// Makes everything acknowledged before now stable, in every mode.
    pub async fn drain(&self) -> io::Result<()> {
        self.durability.sync_all().await
    }

    /// Gives everything acknowledged before now to the host, without making it stable.
    pub async fn write_back(&self) -> io::Result<()> {
        self.durability.write_back().await
    }

    /// Goes on although acknowledged data may be lost; returns whether it may have been.
    pub async fn clear_poison(&self) -> bool {
        self.durability.clear_poison().await
    }

    /// The state of its promises.
    #[must_use]
    pub fn health(&self) -> Health {
        self.durability.health()
    }

    /// The write verifier: changes exactly when acknowledged data may have been lost. There is
    /// none where nothing is ever written.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        (!self.shape().read_only).then(|| self.durability.epoch())
    }

    /// Makes everything stable at the end, in every mode.
    pub async fn close(&self) -> io::Result<()> {
        let closed = self.durability.close().await;
        if let Some(recorder) = self.recorder.get()
            && let Err(error) = recorder.record(0, &What::End)
        {
            tracing::error!(%error, "the recording has no end");
        }
        closed
    }

    /// Bytes, and whether writes are refused.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.durability.shape()
    }

    /// What people and programs are told about its promises.
    fn description(&self) -> String {
        let mut told = self.mode().description().to_owned();
        if let Some(epoch) = self.epoch() {
            told += &format!(" epoch={epoch:016x}");
        }
        if let Some(text) = &*self.text.read().unwrap_or_else(PoisonError::into_inner) {
            told += &format!("; {text}");
        }
        told
    }

    fn describe(&self) -> handshake::Export {
        let shape = self.shape();
        handshake::Export {
            size: shape.size,
            flags: transmission_flags(shape),
            block_sizes: Some(BlockSizes {
                minimum: BLOCK_MIN,
                preferred: shape.block_preferred,
                maximum_payload: PAYLOAD_MAX,
            }),
            name: Some(self.name.clone()),
            description: Some(self.description()),
        }
    }
}

/// The one function that turns a shape into transmission flags: each set exactly when true.
fn transmission_flags(shape: Shape) -> TransmissionFlags {
    let when = |holds: bool, flag| if holds { flag } else { TransmissionFlags::NONE };
    TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_CACHE
        | when(shape.read_only, TransmissionFlags::READ_ONLY)
        | when(!shape.read_only, TransmissionFlags::SEND_WRITE_ZEROES)
        | when(!shape.read_only, TransmissionFlags::SEND_FAST_ZERO)
        | when(!shape.read_only && shape.trim == Support::Native, TransmissionFlags::SEND_TRIM)
        | when(shape.coherent, TransmissionFlags::CAN_MULTI_CONN)
        | when(shape.rotational, TransmissionFlags::ROTATIONAL)
}
