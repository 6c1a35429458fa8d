//! A layer on a device: every call goes to the layer, which passes on what it does not change.

use std::sync::Arc;

use common::command::Zeroing;

use super::{Device, Extent, Io, Layer, Piece, Shape};
use crate::buf::IoBuf;

pub(super) struct Layered {
    pub(super) layer: Box<dyn Layer>,
    pub(super) below: Arc<dyn Device>,
}

impl Device for Layered {
    fn shape(&self) -> Shape {
        self.layer.shape(self.below.shape())
    }

    fn read(&self, at: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        self.layer.read(&*self.below, at, buf)
    }

    fn write(&self, at: u64, data: IoBuf) -> Io<'_, ()> {
        self.layer.write(&*self.below, at, data)
    }

    fn write_many(&self, pieces: Vec<Piece>) -> Io<'_, ()> {
        self.layer.write_many(&*self.below, pieces)
    }

    fn flush(&self, sync: usize) -> Io<'_, ()> {
        self.layer.flush(&*self.below, sync)
    }

    fn write_and_flush(&self, at: u64, data: IoBuf, sync: usize) -> Io<'_, ()> {
        self.layer.write_and_flush(&*self.below, at, data, sync)
    }

    fn zero(&self, at: u64, len: u64, how: Zeroing) -> Io<'_, ()> {
        self.layer.zero(&*self.below, at, len, how)
    }

    fn trim(&self, at: u64, len: u64) -> Io<'_, ()> {
        self.layer.trim(&*self.below, at, len)
    }

    fn extents(&self, at: u64, len: u64) -> Io<'_, Vec<Extent>> {
        self.layer.extents(&*self.below, at, len)
    }

    fn cache(&self, at: u64, len: u64) -> Io<'_, ()> {
        self.layer.cache(&*self.below, at, len)
    }
}
