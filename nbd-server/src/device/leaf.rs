//! A backend as a device: what it lacks is made up from what it has.

use std::io;

use common::command::{Speed, Zeroing};

use super::{Backend, Content, Device, Extent, Io, Piece, Shape, Support, give_way, sync_failure};
use crate::buf::IoBuf;

/// Bytes of zeroes written at a time where a backend cannot zero by itself.
const ZERO_PIECE: usize = 1 << 20;

pub(super) struct Leaf<B>(pub(super) B);

impl<B: Backend> Leaf<B> {
    async fn write_zeroes(&self, mut at: u64, len: u64) -> io::Result<()> {
        let end = at + len;
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZERO_PIECE);
            self.0.write(at, IoBuf::zeroed(piece)).await?;
            at += piece as u64;
            // Where nothing has to be waited for, gigabytes would hold up the others.
            give_way().await;
        }
        Ok(())
    }
}

impl<B: Backend> Device for Leaf<B> {
    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn read(&self, at: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(self.0.read(at, buf))
    }

    fn write(&self, at: u64, data: IoBuf) -> Io<'_, ()> {
        Box::pin(self.0.write(at, data))
    }

    fn write_many(&self, pieces: Vec<Piece>) -> Io<'_, ()> {
        Box::pin(self.0.write_many(pieces))
    }

    fn flush(&self, sync: usize) -> Io<'_, ()> {
        Box::pin(async move { self.0.flush(sync).await.map_err(sync_failure) })
    }

    fn write_and_flush(&self, at: u64, data: IoBuf, sync: usize) -> Io<'_, ()> {
        Box::pin(self.0.write_and_flush(at, data, sync))
    }

    fn zero(&self, at: u64, len: u64, how: Zeroing) -> Io<'_, ()> {
        Box::pin(async move {
            match self.0.zero(at, len, how).await {
                Err(error) if error.kind() == io::ErrorKind::Unsupported && how.speed == Speed::Any => {
                    self.write_zeroes(at, len).await
                }
                done => done,
            }
        })
    }

    fn trim(&self, at: u64, len: u64) -> Io<'_, ()> {
        if self.0.shape().trim == Support::Native {
            return Box::pin(self.0.trim(at, len));
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn extents(&self, at: u64, len: u64) -> Io<'_, Vec<Extent>> {
        if self.0.shape().sparse == Support::Native {
            return Box::pin(self.0.extents(at, len));
        }
        Box::pin(std::future::ready(Ok(vec![Extent { len, content: Content::Data }])))
    }

    fn cache(&self, at: u64, len: u64) -> Io<'_, ()> {
        Box::pin(self.0.cache(at, len))
    }
}
