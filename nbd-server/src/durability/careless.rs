//! `unsafe`: FLUSH and FUA are acknowledged and ignored.

use std::sync::Arc;

use common::command::{Fua, Zeroing};

use super::syncs::Syncs;
use crate::buf::IoBuf;
use crate::device::{Device, Io, Layer, Loan};

/// Promises nothing.
pub(super) struct Careless {
    /// For whoever wants everything stable after all: another mode, or the end.
    syncs: Arc<Syncs>,
}

impl Careless {
    pub(super) fn new(syncs: Arc<Syncs>) -> Careless {
        Careless { syncs }
    }

    async fn count(&self, bytes: u64, done: Io<'_, ()>) -> std::io::Result<()> {
        let done = done.await;
        self.syncs.wrote(bytes);
        done
    }
}

impl Layer for Careless {
    fn write<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, _fua: Fua) -> Io<'a, ()> {
        Box::pin(self.count(data.len() as u64, below.write(at, data, Fua::No)))
    }

    fn flush<'a>(&'a self, _below: &'a dyn Device) -> Io<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn zero<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, how: Zeroing, _fua: Fua) -> Io<'a, ()> {
        Box::pin(self.count(len, below.zero(at, len, how, Fua::No)))
    }

    fn trim<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, _fua: Fua) -> Io<'a, ()> {
        Box::pin(self.count(len, below.trim(at, len, Fua::No)))
    }

    fn lend(&self, below: &dyn Device, at: u64, len: usize) -> Option<Loan> {
        below.lend(at, len)
    }
}
