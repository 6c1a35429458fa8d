//! Nothing: reads are zero, writes vanish. For measuring everything but the disk.

use std::io;

use common::command::Zeroing;

use crate::buf::IoBuf;
use crate::device::{Backend, Shape};

/// Serves nothing at all.
pub struct NullBackend {
    /// Bytes it claims to have.
    pub size: u64,
}

impl Backend for NullBackend {
    fn shape(&self) -> Shape {
        Shape::capable(self.size)
    }

    async fn read(&self, _at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        buf.fill(0);
        Ok(buf)
    }

    async fn write(&self, _at: u64, _data: IoBuf) -> io::Result<()> {
        Ok(())
    }

    async fn flush(&self, _sync: usize) -> io::Result<()> {
        Ok(())
    }

    async fn zero(&self, _at: u64, _len: u64, _how: Zeroing) -> io::Result<()> {
        Ok(())
    }
}
