//! The beginning of a device as a device of its own.

use crate::device::{Layer, Shape};

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
}
