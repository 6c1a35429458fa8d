//! What changes behaviour between the session and a backend: one file each.

pub mod window;
