//! A simulated world for the real session, layers and durability code: a disk whose every
//! operation can be held and made to fail, byte pipes instead of sockets, one thread, no runtime.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;
use nbd_server::buf::{Budget, Pool};
use nbd_server::device::{Health, leaf};
use nbd_server::durability::{EarlyLimits, Mode};
use nbd_server::export::Export;
use nbd_server::session::{End, Memory, Progress, Stop, transmit};

use crate::client::Client;
use crate::disk::Disk;
use crate::pipe;

/// What `early-ack` may hold in the simulation.
pub(crate) const LIMITS: EarlyLimits =
    EarlyLimits { dirty_max: 8192, dirty_age: Duration::from_secs(1), early_max: 4096 };

/// Time that passes only when the test says so.
#[derive(Default)]
struct Clock(RefCell<Vec<oneshot::Sender<()>>>);

impl nbd_server::device::Clock for Clock {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().push(sender);
        Box::pin(receiver.map(|_| ()))
    }
}

/// One server with one export on a simulated disk.
pub(crate) struct World {
    pool: LocalPool,
    spawner: LocalSpawner,
    clock: Rc<Clock>,
    export: Arc<Export>,
    memory: Memory,
    /// The disk under the export.
    pub(crate) disk: Disk,
}

impl World {
    /// A world whose disk has 64 KiB.
    pub(crate) fn new(mode: Mode) -> World {
        World::on(Disk::new(64 << 10, 0), mode)
    }

    /// A server on a disk that has seen others.
    pub(crate) fn on(disk: Disk, mode: Mode) -> World {
        let export = Export::new("sim".into(), leaf(disk.clone()), mode, LIMITS);
        let export = Arc::new(export);
        let (pool, clock) = (LocalPool::new(), Rc::<Clock>::default());
        let (background, time) = (export.clone(), clock.clone());
        let work = async move { background.device().background(time).await };
        pool.spawner().spawn_local(work).expect("the executor lives");
        let memory = Memory { pool: Arc::new(Pool::default()), budget: Budget::new(1 << 20) };
        World { spawner: pool.spawner(), pool, clock, export, memory, disk }
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

    /// Lets the age of dirty data pass: two rounds of timers, with everything that can run after
    /// each.
    pub(crate) fn pass_time(&mut self) {
        for _ in 0..2 {
            self.clock.0.take().into_iter().for_each(|timer| {
                let _nobody_may_wait = timer.send(());
            });
            self.settle();
        }
    }

    /// How the export is.
    pub(crate) fn health(&self) -> Health {
        self.export.device().health()
    }

    /// What the server does before it exits.
    pub(crate) fn close(&mut self) -> Option<io::Result<()>> {
        let (export, done) = (self.export.clone(), Rc::new(RefCell::new(None)));
        let result = done.clone();
        let close = async move { *result.borrow_mut() = Some(export.close().await) };
        self.spawner.spawn_local(close).expect("the executor lives");
        self.settle();
        done.take()
    }

    /// Lets everything run until nothing can go on.
    pub(crate) fn settle(&mut self) {
        self.pool.run_until_stalled();
    }
}
