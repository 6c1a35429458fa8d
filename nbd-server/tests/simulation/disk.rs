//! A disk with a volatile cache, whose operations can be held and made to fail.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use common::command::{Fua, Hole};
use futures::channel::oneshot;
use nbd_server::buf::IoBuf;
use nbd_server::device::{Backend, Shape, Support, sync_failure};

/// What a disk was asked to do; ranges as first byte and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read.
    Read(u64, usize),
    /// Write, durable or not.
    Write(u64, usize, Fua),
    /// Zero.
    Zero(u64, u64),
    /// Trim.
    Trim(u64, u64),
    /// Sync everything.
    Sync,
}

/// Chooses operations.
pub(crate) type Pick = fn(&Op) -> bool;

/// What goes wrong with an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The host says this error.
    Errno(i32),
    /// The backend has a bug.
    Panic,
}

/// A disk; clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

struct State {
    cache: Vec<u8>,
    stable: Vec<u8>,
    /// Operations in the order in which they began.
    log: Vec<Op>,
    hold: Pick,
    held: VecDeque<(Op, oneshot::Sender<io::Result<()>>)>,
    fail: Option<(Pick, Fault)>,
}

impl Disk {
    pub(crate) fn new(size: usize) -> Disk {
        Disk(Arc::new(Mutex::new(State {
            cache: vec![0; size],
            stable: vec![0; size],
            log: Vec::new(),
            hold: |_| false,
            held: VecDeque::new(),
            fail: None,
        })))
    }

    /// From now on, operations that `hold` picks wait until they are released.
    pub(crate) fn hold(&self, hold: Pick) {
        self.lock().hold = hold;
    }

    /// From now on, operations that `pick` picks go wrong and have no effect.
    pub(crate) fn fail(&self, pick: Pick, fault: Fault) {
        self.lock().fail = Some((pick, fault));
    }

    /// The disk is well again.
    pub(crate) fn heal(&self) {
        self.lock().fail = None;
    }

    /// Lets the held operation number `index` go on; returns what it is.
    pub(crate) fn release(&self, index: usize) -> Op {
        let (op, sender) = self.lock().held.remove(index).expect("an operation is held");
        sender.send(Ok(())).expect("a request that was received runs to completion");
        op
    }

    /// The operations that are held.
    pub(crate) fn held(&self) -> Vec<Op> {
        self.lock().held.iter().map(|(op, _)| *op).collect()
    }

    /// Everything the disk was asked to do, in the order in which it began.
    pub(crate) fn log(&self) -> Vec<Op> {
        self.lock().log.clone()
    }

    /// Syncs that began so far.
    pub(crate) fn syncs(&self) -> usize {
        self.log().iter().filter(|op| **op == Op::Sync).count()
    }

    /// The byte at `at`, as readers see it and as a power cut would leave it.
    pub(crate) fn byte(&self, at: usize) -> (u8, u8) {
        let state = self.lock();
        (state.cache[at], state.stable[at])
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the disk in its hands")
    }

    /// Begins an operation: logs it, holds it, fails it.
    async fn begin(&self, op: Op) -> io::Result<()> {
        let gate = {
            let mut state = self.lock();
            state.log.push(op);
            (state.hold)(&op).then(|| {
                let (sender, receiver) = oneshot::channel();
                state.held.push_back((op, sender));
                receiver
            })
        };
        if let Some(gate) = gate {
            gate.await.expect("the disk outlives its operations")?;
        }
        let fault = self.lock().fail.filter(|(pick, _)| pick(&op)).map(|(_, fault)| fault);
        match fault {
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Panic) => panic!("planted"),
            None => Ok(()),
        }
    }
}

impl Backend for Disk {
    fn shape(&self) -> Shape {
        Shape {
            size: self.lock().cache.len() as u64,
            read_only: false,
            block_preferred: 4096,
            fua: Support::Native,
            trim: Support::Native,
            coherent: true,
            rotational: false,
        }
    }

    async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        self.begin(Op::Read(at, buf.len())).await?;
        let at = usize::try_from(at).expect("the disk is small");
        let len = buf.len();
        buf.copy_from_slice(&self.lock().cache[at..][..len]);
        Ok(buf)
    }

    async fn write(&self, at: u64, data: IoBuf, fua: Fua) -> io::Result<()> {
        let begun = self.begin(Op::Write(at, data.len(), fua)).await;
        if fua == Fua::Yes {
            begun.map_err(sync_failure)?;
        } else {
            begun?;
        }
        let at = usize::try_from(at).expect("the disk is small");
        let mut state = self.lock();
        state.cache[at..][..data.len()].copy_from_slice(&data);
        if fua == Fua::Yes {
            state.stable[at..][..data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        // What is in the cache when the sync begins is what it makes stable.
        let snapshot = self.lock().cache.clone();
        self.begin(Op::Sync).await?;
        self.lock().stable = snapshot;
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64, _hole: Hole) -> io::Result<()> {
        self.begin(Op::Zero(at, len)).await?;
        let range = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
        self.lock().cache[range].fill(0);
        Ok(())
    }

    async fn trim(&self, at: u64, len: u64) -> io::Result<()> {
        self.begin(Op::Trim(at, len)).await?;
        let range = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
        self.lock().cache[range].fill(0);
        Ok(())
    }
}
