//! A server's inside: one export in memory, and an executor in which nothing waits for real.

use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use nbd_server::backend::memory::MemoryBackend;
use nbd_server::buf::{Budget, Pool};
use nbd_server::device::leaf;
use nbd_server::durability::{Clock, EarlyLimits, Mode};
use nbd_server::epoch_store;
use nbd_server::export::{Export, Registry};
use nbd_server::session::Memory;

/// Bytes of the export: no whole number of sectors.
pub(crate) const SIZE: u64 = 66_001;
/// Bytes all connections may hold; more than the longest request the export admits.
const MEMORY_MAX: usize = 1 << 20;
/// What `early-ack` may hold: so little that it is full now and then.
const LIMITS: EarlyLimits =
    EarlyLimits { dirty_max: 8192, dirty_age: Duration::from_secs(1), early_max: 4096 };

/// Time never passes.
struct Never;

impl Clock for Never {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(pending())
    }
}

/// One export and who may use it.
pub(crate) struct Stage {
    pool: LocalPool,
    pub(crate) registry: Registry,
    pub(crate) export: Arc<Export>,
    pub(crate) memory: Memory,
}

impl Stage {
    /// `choice` chooses the durability mode.
    pub(crate) fn new(choice: u8) -> Stage {
        let mode = match choice % 4 {
            0 => Mode::Writeback,
            1 => Mode::Writethrough,
            2 => Mode::EarlyAck,
            _ => Mode::Unsafe,
        };
        let storage = leaf(MemoryBackend::new(SIZE).expect("little memory"));
        let export = Export::new(String::new(), storage, mode, LIMITS, epoch_store::nothing_to_lose());
        let export = Arc::new(export);
        let registry = Registry::default();
        registry.add(export.clone());
        let pool = LocalPool::new();
        let background = export.clone();
        let work = async move { background.device().background(Rc::new(Never)).await };
        pool.spawner().spawn_local(work).expect("the executor lives");
        let memory = Memory { pool: Arc::new(Pool::default()), budget: Budget::new(MEMORY_MAX) };
        Stage { pool, registry, export, memory }
    }

    /// Runs something to its end, which must come without anything from outside.
    pub(crate) fn play<T: 'static>(&mut self, play: impl Future<Output = T> + 'static) -> T {
        let (done, mut result) = oneshot::channel();
        let play = async move {
            let _nobody_hears = done.send(play.await);
        };
        self.pool.spawner().spawn_local(play).expect("the executor lives");
        self.pool.run_until_stalled();
        result.try_recv().expect("nothing panicked").expect("it ends by itself")
    }
}
