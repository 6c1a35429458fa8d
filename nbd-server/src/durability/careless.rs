//! `unsafe`: FLUSH and FUA are acknowledged and ignored.

use common::command::{Fua, Hole};

use crate::buf::IoBuf;
use crate::device::{Device, Io, Layer};

/// Promises nothing.
pub(super) struct Careless;

impl Layer for Careless {
    fn write<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, _fua: Fua) -> Io<'a, ()> {
        below.write(at, data, Fua::No)
    }

    fn flush<'a>(&'a self, _below: &'a dyn Device) -> Io<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn zero<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, hole: Hole, _fua: Fua) -> Io<'a, ()> {
        below.zero(at, len, hole, Fua::No)
    }

    fn trim<'a>(&'a self, below: &'a dyn Device, at: u64, len: u64, _fua: Fua) -> Io<'a, ()> {
        below.trim(at, len, Fua::No)
    }
}
