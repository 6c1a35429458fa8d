//! The beginning of a device as a device of its own.

use crate::buf::IoBuf;
use crate::device::{Device, Io, Layer, Shape};

/// Shows the first bytes of what is below, and no more.
pub struct Window {
    /// How many.
    pub size: u64,
}

impl Layer for Window {
    // Requests are held to the shape before they come here.
    fn shape(&self, below: Shape) -> Shape {
        Shape { size: self.size.min(below.size), ..below }
    }

    fn write_and_flush<'a>(&'a self, below: &'a dyn Device, at: u64, data: IoBuf, sync: usize) -> Io<'a, ()> {
        below.write_and_flush(at, data, sync)
    }
}
