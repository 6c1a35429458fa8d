//! `writethrough` and `writeback`: FLUSH and FUA mean what the protocol says, and no success
//! follows a failed sync.

use std::sync::Arc;

use common::command::{Fua, Zeroing};

use super::syncs::Syncs;
use crate::buf::IoBuf;
use crate::device::{Device, Health, Io, Layer, Loan, Piece, Support};

/// Makes writes durable when asked: by every request (`writethrough`) or by FLUSH and FUA.
pub(super) struct Stable {
    every_write: Fua,
    syncs: Arc<Syncs>,
}

impl Stable {
    /// `every_write` says whether each write is durable before its reply even without FUA.
    pub(super) fn new(every_write: Fua, syncs: Arc<Syncs>) -> Stable {
        Stable { every_write, syncs }
    }

    fn raise(&self, fua: Fua) -> Fua {
        if self.every_write == Fua::Yes { Fua::Yes } else { fua }
    }

    /// Ends a write-class request whose effect is in the kernel but not yet stable.
    async fn settle(&self, below: &dyn Device, fua: Fua) -> std::io::Result<()> {
        match fua {
            Fua::Yes => self.syncs.sync(below).await,
            Fua::No => Ok(()),
        }
    }
}

impl Layer for Stable {
    fn write<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, fua: Fua) -> Io<'a, ()> {
        let fua = self.raise(fua);
        Box::pin(async move {
            self.syncs.check()?;
            if fua == Fua::Yes && below.shape().fua == Support::Native {
                return self.syncs.synced_by_itself(below.write(at, data, Fua::Yes).await);
            }
            let bytes = data.len() as u64;
            let written = below.write(at, data, Fua::No).await;
            self.syncs.wrote(bytes);
            written?;
            self.settle(below, fua).await
        })
    }

    fn write_many<'a>(&'a self, below: &'a dyn Device, pieces: Vec<Piece>) -> Io<'a, ()> {
        Box::pin(async move {
            self.syncs.check()?;
            let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
            let written = below.write_many(pieces).await;
            self.syncs.wrote(bytes);
            written?;
            self.settle(below, self.every_write).await
        })
    }

    fn health(&self, below: Health) -> Health {
        let poison = self.syncs.check().err().map(|error| error.to_string());
        Health { poison, unstable_bytes: self.syncs.unstable_bytes(), ..below }
    }

    fn flush<'a>(&'a self, below: &'a dyn Device) -> Io<'a, ()> {
        Box::pin(self.syncs.sync(below))
    }

    fn zero<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, how: Zeroing, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            self.syncs.check()?;
            let zeroed = below.zero(at, len, how, Fua::No).await;
            self.syncs.wrote(len);
            zeroed?;
            self.settle(below, self.raise(fua)).await
        })
    }

    fn trim<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, fua: Fua) -> Io<'a, ()> {
        Box::pin(async move {
            self.syncs.check()?;
            let trimmed = below.trim(at, len, Fua::No).await;
            self.syncs.wrote(len);
            trimmed?;
            self.settle(below, self.raise(fua)).await
        })
    }

    fn lend(&self, below: &dyn Device, at: u64, len: usize) -> Option<Loan> {
        below.lend(at, len)
    }
}
