//! What a server has to offer.

use super::super::{Export, Listed};

/// The exports a server offers to one connection.
pub trait Exports {
    /// What transmission needs once an export was chosen.
    type Handle;
    /// Every export that may be listed to this client.
    fn list(&self) -> Vec<Listed>;
    /// The export of that name; the empty name asks for the default export.
    fn find(&self, name: &str) -> Option<(Export, Self::Handle)>;
    /// The metadata contexts of an export that was found.
    fn contexts(&self, _: &Self::Handle) -> Vec<String> {
        Vec::new()
    }
}

/// Whether the connection is encrypted, and whether it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// It cannot be.
    Unavailable,
    /// The client may ask for it.
    Optional,
    /// Nothing else can be had before it.
    Required,
    /// It is.
    Active,
}
