//! A simulated world for the real session, layers and durability code: a disk whose every
//! operation can be held and made to fail, byte pipes instead of sockets, one thread, no runtime.

use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;
use nbd_server::buf::{Budget, Pool};
use nbd_server::device::leaf;
use nbd_server::durability::Mode;
use nbd_server::export::Export;
use nbd_server::session::{End, Memory, Progress, Stop, transmit};

use crate::client::Client;
use crate::disk::Disk;
use crate::pipe;

/// One server with one export on a simulated disk.
pub(crate) struct World {
    pool: LocalPool,
    spawner: LocalSpawner,
    export: Arc<Export>,
    memory: Memory,
    /// The disk under the export.
    pub(crate) disk: Disk,
}

impl World {
    /// A world whose disk has 64 KiB.
    pub(crate) fn new(mode: Mode) -> World {
        World::on(Disk::new(64 << 10), mode)
    }

    /// A server on a disk that has seen others.
    pub(crate) fn on(disk: Disk, mode: Mode) -> World {
        let export = Export::new("sim".into(), leaf(disk.clone()), mode).expect("the mode is available");
        let pool = LocalPool::new();
        let memory = Memory { pool: Arc::new(Pool::default()), budget: Budget::new(1 << 20) };
        World { spawner: pool.spawner(), pool, export: Arc::new(export), memory, disk }
    }

    /// A new connection in transmission.
    pub(crate) fn connect(&self) -> Client {
        let (ours, mut theirs) = pipe::duplex();
        let (stop, stopped) = oneshot::channel::<Stop>();
        let (ended, end) = oneshot::channel::<End>();
        let (export, memory) = (self.export.clone(), self.memory.clone());
        let session = async move {
            let stop = stopped.map(|stop| stop.unwrap_or(Stop::Gently));
            let end = transmit(&mut theirs, export, memory, stop, Rc::new(Progress::default())).await;
            drop(theirs);
            let _test_may_not_ask = ended.send(end);
        };
        self.spawner.spawn_local(session).expect("the executor lives");
        Client::new(ours, stop, end)
    }

    /// Lets everything run until nothing can go on.
    pub(crate) fn settle(&mut self) {
        self.pool.run_until_stalled();
    }
}
