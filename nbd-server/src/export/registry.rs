//! Every export of a server, by name, and what one client sees of them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use common::handshake::server::Exports;
use common::handshake::{self, Listed};

use super::{ALLOCATION_CONTEXT, EPOCH_CONTEXT, Export, Peer};

/// Every export of the server, by name.
#[derive(Default)]
pub struct Registry {
    shelf: RwLock<Shelf>,
}

#[derive(Default)]
struct Shelf {
    exports: BTreeMap<String, Arc<Export>>,
    /// Retired, and not yet closed.
    leaving: Vec<Arc<Export>>,
}

impl Registry {
    /// Adds an export under its name.
    ///
    /// # Panics
    /// When another has that name.
    pub fn add(&self, export: Arc<Export>) {
        let before = self.write().exports.insert(export.name().to_owned(), export);
        assert!(before.is_none(), "names are unique in a plan");
    }

    /// Retires an export: nobody finds it any more. It must be closed and then [let go](Registry::let_go).
    #[must_use]
    pub fn retire(&self, name: &str) -> Option<Arc<Export>> {
        let mut shelf = self.write();
        let export = shelf.exports.remove(name)?;
        shelf.leaving.push(export.clone());
        export.retire();
        Some(export)
    }

    /// A retired export was closed.
    pub fn let_go(&self, export: &Arc<Export>) {
        self.write().leaving.retain(|leaving| !Arc::ptr_eq(leaving, export));
    }

    /// The export of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Export>> {
        self.read().exports.get(name).cloned()
    }

    /// Every export that can be found.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Export>> {
        self.read().exports.values().cloned().collect()
    }

    /// Every export that is not closed yet.
    #[must_use]
    pub fn unclosed(&self) -> Vec<Arc<Export>> {
        let shelf = self.read();
        shelf.exports.values().chain(&shelf.leaving).cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Shelf> {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shelf> {
        self.shelf.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one client sees: an export that does not admit it is not there.
pub struct Visible<'a> {
    /// What there is.
    pub registry: &'a Registry,
    /// Who looks.
    pub peer: &'a Peer,
}

impl Exports for Visible<'_> {
    type Handle = Arc<Export>;

    fn list(&self) -> Vec<Listed> {
        let listed = |export: &Arc<Export>| Listed {
            name: export.name.clone(),
            description: Some(export.description()),
        };
        self.registry.all().iter().filter(|export| export.door.admits(self.peer)).map(listed).collect()
    }

    fn find(&self, name: &str) -> Option<(handshake::Export, Arc<Export>)> {
        let export = self.registry.get(name).filter(|export| export.door.admits(self.peer))?;
        Some((export.describe(), export))
    }

    fn contexts(&self, export: &Arc<Export>) -> Vec<String> {
        // A client that knows an epoch selects this very one: a server that has forgotten something
        // does not have it.
        let epoch = export.epoch().map(|epoch| format!("{EPOCH_CONTEXT}{epoch:016x}"));
        std::iter::once(ALLOCATION_CONTEXT.to_owned()).chain(epoch).collect()
    }
}
