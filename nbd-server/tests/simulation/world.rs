//! A simulated world for the real session, layers and durability code: a disk whose every
//! operation can be held and made to fail, byte pipes instead of sockets, one thread, no runtime.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::handshake::context::Agreed;
use futures::FutureExt;
use futures::channel::{mpsc, oneshot};
use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;
use nbd_server::buf::{Budget, Pool};
use nbd_server::device::leaf;
use nbd_server::durability::epoch::Epoch;
use nbd_server::durability::{ChangeError, EarlyLimits, Health, Mode};
use nbd_server::export::Export;
use nbd_server::session::{End, Memory, Stop, transmit};

use crate::client::Client;
use crate::disk::Disk;
use crate::pipe;
use crate::record::Stored;

/// What `early-ack` may hold in the simulation.
pub(crate) const LIMITS: EarlyLimits =
    EarlyLimits { dirty_max: 10 << 10, dirty_age: Duration::from_secs(1), early_max: 4096 };

/// Time that passes only when the test says so.
#[derive(Default)]
struct Clock(RefCell<Vec<oneshot::Sender<()>>>);

impl nbd_server::durability::Clock for Clock {
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
    /// What is stored about the export.
    pub(crate) stored: Stored,
}

/// What an operator asked for, until it is done.
pub(crate) type Asked<T> = oneshot::Receiver<T>;

impl World {
    /// A world whose disk has 64 KiB.
    pub(crate) fn new(mode: Mode) -> World {
        World::on(&Disk::new(64 << 10, 0), mode)
    }

    /// A server on the same disk as another one that has ended in order: nothing is unstable.
    pub(crate) fn after_a_clean_end(mode: Mode) -> World {
        let mut first = World::new(mode);
        first.close().expect("the disk does not hang").expect("the disk is well");
        World::after(&first.disk, first.stored.clone(), mode)
    }

    /// A server on a disk that has seen others, of which nothing is known.
    pub(crate) fn on(disk: &Disk, mode: Mode) -> World {
        let stored = Stored::new(disk);
        World::after(disk, stored, mode)
    }

    /// A server on a disk that has seen others, which stored a record.
    pub(crate) fn after(disk: &Disk, stored: Stored, mode: Mode) -> World {
        let disk = disk.reopen();
        let epoch = stored.epoch(&disk, mode);
        World::with(disk, stored, epoch, mode)
    }

    /// A server after a clean end whose record is stored through the description that answers FLUSH, as
    /// no real one is.
    pub(crate) fn sharing_a_description(mode: Mode) -> World {
        let World { disk, stored, .. } = World::after_a_clean_end(mode);
        let disk = disk.reopen();
        let epoch = stored.epoch(&disk, mode);
        let epoch = Epoch { store: Box::new(stored.sharing(&disk)), ..epoch };
        World::with(disk, stored, epoch, mode)
    }

    fn with(disk: Disk, stored: Stored, epoch: Epoch, mode: Mode) -> World {
        let export = Export::new("sim".into(), leaf(disk.clone()), mode, LIMITS, epoch);
        let export = Arc::new(export);
        let (pool, clock) = (LocalPool::new(), Rc::<Clock>::default());
        let (background, time) = (export.clone(), clock.clone());
        let work = async move { background.device().background(time).await };
        pool.spawner().spawn_local(work).expect("the executor lives");
        let memory = Memory { pool: Arc::new(Pool::default()), budget: Budget::new(1 << 20) };
        World { spawner: pool.spawner(), pool, clock, export, memory, disk, stored }
    }

    /// A new connection in transmission, with simple replies.
    pub(crate) fn connect(&self) -> Client {
        self.connect_as(Agreed::default())
    }

    /// A new connection in transmission.
    pub(crate) fn connect_as(&self, agreed: Agreed) -> Client {
        let (ours, mut theirs) = pipe::duplex();
        let (stop, stopped) = mpsc::unbounded::<Stop>();
        let (ended, end) = oneshot::channel::<End>();
        let (export, memory) = (self.export.clone(), self.memory.clone());
        let session = async move {
            let end = transmit(&mut theirs, export, agreed, memory, stopped, Rc::default()).await;
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
        self.export.health()
    }

    /// Its mode.
    pub(crate) fn mode(&self) -> Mode {
        self.export.mode()
    }

    /// Its epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.export.epoch().expect("it can be written")
    }

    /// The operator asks for another mode.
    pub(crate) fn change_mode(&self, to: Mode) -> Asked<Result<(), ChangeError>> {
        let export = self.export.clone();
        self.ask(async move { export.change_mode(to).await })
    }

    /// The operator goes on although data may be lost.
    pub(crate) fn clear_poison(&self) -> Asked<bool> {
        let export = self.export.clone();
        self.ask(async move { export.clear_poison().await })
    }

    fn ask<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Asked<T> {
        let (done, result) = oneshot::channel();
        let work = async move {
            let _operator_may_not_wait = done.send(work.await);
        };
        self.spawner.spawn_local(work).expect("the executor lives");
        result
    }

    /// What the server does before it exits.
    pub(crate) fn close(&mut self) -> Option<io::Result<()>> {
        let export = self.export.clone();
        let mut closed = self.ask(async move { export.close().await });
        self.settle();
        closed.try_recv().expect("nobody drops it")
    }

    /// Lets everything run until nothing can go on.
    pub(crate) fn settle(&mut self) {
        self.pool.run_until_stalled();
    }
}
