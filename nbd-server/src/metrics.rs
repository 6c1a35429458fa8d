//! What an export has done so far, in numbers; printed on SIGUSR1 and at the end, and told by the
//! admin socket.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::command::{Command, Fua};

/// Counters of one export, over all connections since the server started.
#[derive(Debug, Default)]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    trims: AtomicU64,
    zeroes: AtomicU64,
    statuses: AtomicU64,
    caches: AtomicU64,
    fua: AtomicU64,
    errors: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
}

impl Counters {
    /// A request was received whole.
    pub fn received(&self, command: &Command) {
        let fua = match *command {
            Command::Read(span, _) => {
                self.reads.fetch_add(1, Relaxed);
                self.read_bytes.fetch_add(span.len, Relaxed);
                Fua::No
            }
            Command::Write(span, fua) => {
                self.writes.fetch_add(1, Relaxed);
                self.written_bytes.fetch_add(span.len, Relaxed);
                fua
            }
            Command::Flush => {
                self.flushes.fetch_add(1, Relaxed);
                Fua::No
            }
            Command::Trim(_, fua) => {
                self.trims.fetch_add(1, Relaxed);
                fua
            }
            Command::WriteZeroes(_, _, fua) => {
                self.zeroes.fetch_add(1, Relaxed);
                fua
            }
            Command::BlockStatus(..) => {
                self.statuses.fetch_add(1, Relaxed);
                Fua::No
            }
            Command::Cache(_) => {
                self.caches.fetch_add(1, Relaxed);
                Fua::No
            }
            Command::Filter | Command::Disconnect => Fua::No,
        };
        if fua == Fua::Yes {
            self.fua.fetch_add(1, Relaxed);
        }
    }

    /// A request was answered with an error.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// A connection chose the export.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// A connection has ended.
    pub fn disconnected(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Logs each of them as a number of its own, so that programs need not take a text apart.
    pub fn log(&self, export: &str, message: &str) {
        let now = |counter: &AtomicU64| counter.load(Relaxed);
        tracing::info!(
            export,
            connections = now(&self.connections),
            open = now(&self.open),
            reads = now(&self.reads),
            read_bytes = now(&self.read_bytes),
            writes = now(&self.writes),
            written_bytes = now(&self.written_bytes),
            flushes = now(&self.flushes),
            fua = now(&self.fua),
            trims = now(&self.trims),
            zeroes = now(&self.zeroes),
            statuses = now(&self.statuses),
            caches = now(&self.caches),
            errors = now(&self.errors),
            "{message}"
        );
    }

    /// Every counter with its name.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let rows = [
            ("connections", &self.connections),
            ("open", &self.open),
            ("reads", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("writes", &self.writes),
            ("written_bytes", &self.written_bytes),
            ("flushes", &self.flushes),
            ("fua", &self.fua),
            ("trims", &self.trims),
            ("zeroes", &self.zeroes),
            ("statuses", &self.statuses),
            ("caches", &self.caches),
            ("errors", &self.errors),
        ];
        rows.into_iter().map(|(name, counter)| (name, counter.load(Relaxed)))
    }
}
