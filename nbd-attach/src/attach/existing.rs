//! `--id`: who asks for the same again gets the same device.

use super::Attached;
use crate::bounded::bounded;
use crate::config::AttachConfig;
use crate::host::Host;
use crate::identifier::{self, Id};
use crate::registry::{Lock, Record};
use crate::sysfs::DeviceDir;
use common::proto::TransmissionFlags;
use std::io;
use std::time::Duration;

/// Somebody who attaches by the same id may need this long, and then it is there.
const TURN_PATIENCE: Duration = Duration::from_secs(60);

/// Why the id does not help.
#[derive(Debug, thiserror::Error)]
pub enum ExistingError {
    /// It belongs to something else.
    #[error(
        "{device} bears the id {id} already, and is attached to {there}, not to {wanted}; detach it first, or \
         choose another id"
    )]
    Other {
        /// Which.
        device: String,
        /// The id.
        id: Id,
        /// What is there.
        there: String,
        /// What was asked for.
        wanted: String,
    },
    /// It is where it was not asked for.
    #[error("{device} bears the id {id} already; leave --device away, or say --device {device}")]
    Elsewhere {
        /// Which.
        device: String,
        /// The id.
        id: Id,
    },
    /// Somebody else is busy with it.
    #[error("another nbd-attach is still busy with the id {0}")]
    Busy(Id),
    /// The registry or sysfs fails us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Waits for whoever attaches by the same id right now.
pub(super) async fn turn(host: &Host, id: &Id) -> Result<Lock, ExistingError> {
    let (registry, name) = (host.registry.clone(), id.clone());
    let turn = bounded(TURN_PATIENCE, move || registry.naming(&name)).await;
    Ok(turn.map_err(|_| ExistingError::Busy(id.clone()))??)
}

/// The device that bears the id, if there is one and it is what was asked for.
pub(super) fn existing(
    config: &AttachConfig,
    host: &Host,
    id: &Id,
) -> Result<Option<(Attached, Option<Record>)>, ExistingError> {
    let Some(device) = host.by_id(&id.to_string()) else { return Ok(None) };
    let Some(backend) = device.backend() else { return Ok(None) };
    let Some(told) = identifier::read(&backend) else { return Ok(None) };
    if !told.is_of(&config.uri) {
        let (device, there) = (device.index.to_string(), told.uri.to_owned());
        return Err(ExistingError::Other { device, id: id.clone(), there, wanted: config.uri.to_string() });
    }
    if config.device.is_some_and(|wanted| wanted != device.index) {
        return Err(ExistingError::Elsewhere { device: device.index.to_string(), id: id.clone() });
    }
    let record = host.registry.record(&device);
    let attached = Attached::describe(&device, record.as_ref())?;
    Ok(Some((attached, record)))
}

impl Attached {
    /// A device that was attached before, by what the kernel shows and what is remembered of it.
    ///
    /// # Errors
    /// It has gone.
    pub fn describe(device: &DeviceDir, record: Option<&Record>) -> io::Result<Attached> {
        let backend = device.backend().unwrap_or_default();
        let told = identifier::read(&backend);
        let flags = record.map(|record| TransmissionFlags(record.export.flags));
        Ok(Attached {
            device: device.index.to_string(),
            index: device.index.number(),
            size_bytes: device.size()?,
            block_size: device.number("queue/logical_block_size")?,
            read_only: device.number::<u8>("ro")? != 0,
            flags: flags.map(|flags| flags.names().collect()).unwrap_or_default(),
            connections: record.map_or(0, |record| record.connections.len()),
            uri: told.map(|told| told.uri.to_owned()).unwrap_or_default(),
            id: told.and_then(|told| told.id).map(str::to_owned),
            backend,
        })
    }
}
