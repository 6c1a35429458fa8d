//! An export: a name, a stack of layers over a backend, and what it tells clients about itself.
//!
//! The only place that assembles stacks, and the only one that turns a [`Shape`] into
//! transmission flags.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;

use common::command::Terms;
use common::handshake::server::Exports;
use common::handshake::{self, BlockSizes, Listed};
use common::proto::{PAYLOAD_MAX, TransmissionFlags};

use crate::device::{Device, Shape, Support, layered};
use crate::durability::{EarlyLimits, Mode};
use crate::layer::order::Order;
use crate::metrics::Counters;

/// Smallest request in bytes. Storage is reached through the page cache, which takes any.
const BLOCK_MIN: u32 = 1;

/// One export, shared by all its connections.
pub struct Export {
    name: String,
    device: Arc<dyn Device>,
    storage: Arc<dyn Device>,
    mode: Mode,
    counters: Counters,
}

impl Export {
    /// Puts the durability mode and the order of overlapping writes on top of `storage`.
    #[must_use]
    pub fn new(name: String, storage: Arc<dyn Device>, mode: Mode, limits: EarlyLimits) -> Export {
        let device = layered(Box::new(Order::default()), mode.promise(storage.clone(), limits));
        Export { name, device, storage, mode, counters: Counters::default() }
    }

    /// The name clients ask for; empty for the default export.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The top of the stack.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What its connections are held to.
    #[must_use]
    pub fn terms(&self) -> Terms {
        let shape = self.device.shape();
        Terms {
            size: shape.size,
            flags: transmission_flags(shape),
            block_min: BLOCK_MIN,
            payload_max: PAYLOAD_MAX,
        }
    }

    /// Makes everything stable at the end, in every mode.
    pub async fn close(&self) -> io::Result<()> {
        self.device.flush().await?;
        if self.mode == Mode::Unsafe {
            self.storage.flush().await?;
        }
        Ok(())
    }

    fn describe(&self) -> handshake::Export {
        let Terms { size, flags, block_min, payload_max } = self.terms();
        handshake::Export {
            size,
            flags,
            block_sizes: Some(BlockSizes {
                minimum: block_min,
                preferred: self.device.shape().block_preferred,
                maximum_payload: payload_max,
            }),
            name: Some(self.name.clone()),
            description: Some(self.mode.description().to_owned()),
        }
    }
}

/// The one function that turns a shape into transmission flags: each set exactly when true.
fn transmission_flags(shape: Shape) -> TransmissionFlags {
    let when = |holds: bool, flag| if holds { flag } else { TransmissionFlags::NONE };
    TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | when(shape.read_only, TransmissionFlags::READ_ONLY)
        | when(!shape.read_only, TransmissionFlags::SEND_WRITE_ZEROES)
        | when(!shape.read_only && shape.trim == Support::Native, TransmissionFlags::SEND_TRIM)
        | when(shape.coherent, TransmissionFlags::CAN_MULTI_CONN)
        | when(shape.rotational, TransmissionFlags::ROTATIONAL)
}

/// Another export has that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameTaken;

/// Every export of the server, by name.
#[derive(Default)]
pub struct Registry {
    exports: BTreeMap<String, Arc<Export>>,
}

impl Registry {
    /// Adds an export under its name.
    pub fn add(&mut self, export: Export) -> Result<(), NameTaken> {
        match self.exports.entry(export.name.clone()) {
            Entry::Occupied(_) => Err(NameTaken),
            Entry::Vacant(place) => {
                place.insert(Arc::new(export));
                Ok(())
            }
        }
    }

    /// Every export.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.values()
    }
}

impl Exports for Registry {
    type Handle = Arc<Export>;

    fn list(&self) -> Vec<Listed> {
        let listed = |export: &Arc<Export>| Listed {
            name: export.name.clone(),
            description: Some(export.mode.description().to_owned()),
        };
        self.iter().map(listed).collect()
    }

    fn find(&self, name: &str) -> Option<(handshake::Export, Arc<Export>)> {
        let export = self.exports.get(name)?;
        Some((export.describe(), export.clone()))
    }
}
