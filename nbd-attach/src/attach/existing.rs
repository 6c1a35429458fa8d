//! `--id`: who asks for the same again gets the same device, if it is the same and works.
//!
//! That a device bears the id says little. It may have been left by somebody who was killed on the way, its server may
//! have gone and nobody noticed, or it may be disconnected and only wait for those who still have it open.

use super::geometry::Geometry;
use super::settle::{Verdict, settle};
use super::{Answer, Attached};
use crate::bounded::bounded;
use crate::config::{Access, AttachConfig, Keep};
use crate::host::Host;
use crate::identifier::{self, Id};
use crate::netlink::client::NetlinkError;
use crate::netlink::message::ClientFlags;
use crate::opener::OpenError;
use crate::registry::{Connection, Lock, Phase, Record};
use crate::revive::{Revived, probe, revive};
use crate::sysfs::DeviceDir;
use crate::usage::{Use, uses_of};
use std::io;
use std::time::Duration;

/// Somebody who attaches by the same id may need this long, and then it is there.
const TURN_PATIENCE: Duration = Duration::from_secs(60);
/// A healthy driver answers within milliseconds.
const DRIVER_PATIENCE: Duration = Duration::from_secs(20);

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
    /// It is not as it was asked for.
    #[error("{device} bears the id {id} already, and {how}; detach it first, or ask for it as it is")]
    Differs {
        /// Which.
        device: String,
        /// The id.
        id: Id,
        /// What is otherwise.
        how: String,
    },
    /// It is disconnected.
    #[error(
        "{device} bears the id {id}, but is disconnected, and goes when nobody uses it any more{}",
        users(.uses)
    )]
    Lingering {
        /// Which.
        device: String,
        /// The id.
        id: Id,
        /// By whom it is used.
        uses: Vec<Use>,
    },
    /// It does not answer, and somebody or nobody cares.
    #[error("{device} bears the id {id}, but does not answer: {why}")]
    Dead {
        /// Which.
        device: String,
        /// The id.
        id: Id,
        /// What is known of it.
        why: String,
    },
    /// It does not answer, and neither does its server, or not as it should.
    #[error(
        "{device} bears the id {id}, but its connection is dead: {error}; `nbd-attach keep {id}` waits for its server, \
         `nbd-attach detach --force {id}` gives it up"
    )]
    Open {
        /// Which.
        device: String,
        /// The id.
        id: Id,
        /// Why there is no new one.
        error: Box<OpenError>,
    },
    /// Somebody else is busy with it.
    #[error("another nbd-attach is still busy with the id {0}")]
    Busy(Id),
    /// The driver would not.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The registry or sysfs fails us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn users(uses: &[Use]) -> String {
    let words: Vec<String> = uses.iter().map(Use::to_string).collect();
    if words.is_empty() { String::new() } else { format!(": it is {}", words.join(", ")) }
}

/// Waits for whoever attaches by the same id right now. Where no file can be locked, nobody is waited for.
pub(super) async fn turn(host: &Host, id: &Id) -> Result<Option<Lock>, ExistingError> {
    let (registry, name) = (host.registry.clone(), id.clone());
    match bounded(TURN_PATIENCE, move || registry.naming(&name)).await {
        Ok(Ok(lock)) => Ok(Some(lock)),
        Ok(Err(error)) => {
            tracing::warn!("two that attach by the id {id} at once may get two devices: {error}");
            Ok(None)
        }
        Err(_) => Err(ExistingError::Busy(id.clone())),
    }
}

/// The device that bears the id, if there is one. It is what was asked for, and was just read, or nobody keeps it and we
/// are about to: then it may have to be given connections before it can be read.
pub(super) async fn existing(
    config: &AttachConfig,
    host: &Host,
    id: &Id,
) -> Result<Option<(Attached, Record, Answer)>, ExistingError> {
    let Some(device) = host.by_id(&id.to_string()) else { return Ok(None) };
    let Some(backend) = device.backend() else { return Ok(None) };
    same_place(config, id, &device, &backend)?;
    let record = host.registry.record(&device);
    let at = At { config, host, id, device: &device, backend: &backend };
    at.not_disconnected(record.as_ref()).await?;
    let record = match record {
        Some(record) => record,
        None => at.rebuilt().await?,
    };
    at.as_wished(&record)?;
    let kept = host.registry.is_kept(&backend);
    if record.phase == Phase::Made && !kept {
        return at.finished(record).await;
    }
    let answer = if config.keep == Keep::Reconnect && !kept { Answer::Awaited } else { Answer::Read };
    if answer == Answer::Read {
        at.answering(&record).await?;
    }
    let attached = Attached::describe(&device, Some(&record))?;
    Ok(Some((attached, record, answer)))
}

fn same_place(
    config: &AttachConfig,
    id: &Id,
    device: &DeviceDir,
    backend: &str,
) -> Result<(), ExistingError> {
    let Some(told) = identifier::read(backend) else { return Ok(()) };
    let name = device.index.to_string();
    if !told.is_of(&config.uri) {
        let (there, wanted) = (told.uri.to_owned(), config.uri.to_string());
        return Err(ExistingError::Other { device: name, id: id.clone(), there, wanted });
    }
    if config.device.is_some_and(|wanted| wanted != device.index) {
        return Err(ExistingError::Elsewhere { device: name, id: id.clone() });
    }
    Ok(())
}

/// A device that bears the id.
struct At<'a> {
    config: &'a AttachConfig,
    host: &'a Host,
    id: &'a Id,
    device: &'a DeviceDir,
    backend: &'a str,
}

impl At<'_> {
    fn name(&self) -> String {
        self.device.index.to_string()
    }

    fn dead(&self, why: impl Into<String>) -> ExistingError {
        ExistingError::Dead { device: self.name(), id: self.id.clone(), why: why.into() }
    }

    /// A device that is disconnected, but open, cannot be changed any more.
    async fn not_disconnected(&self, record: Option<&Record>) -> Result<(), ExistingError> {
        let known = record.is_some_and(|record| record.phase == Phase::Disconnected);
        let told = || {
            let netlink = &self.host.netlink;
            netlink.client_flags(self.device.index, Some(self.backend), ClientFlags::NONE, DRIVER_PATIENCE)
        };
        let disconnected = known || matches!(told().await, Err(NetlinkError::Refused(_)));
        if disconnected && self.device.backend().as_deref() == Some(self.backend) {
            let uses = uses_of(self.device)?;
            return Err(ExistingError::Lingering { device: self.name(), id: self.id.clone(), uses });
        }
        Ok(())
    }

    /// What was asked for and cannot be changed while it is attached.
    fn as_wished(&self, record: &Record) -> Result<(), ExistingError> {
        let (there, wanted) = (record.connections.len(), self.config.connections);
        let read_only = self.device.number::<u8>("ro")? != 0;
        let block_size: u32 = self.device.number("queue/logical_block_size")?;
        let how = match self.config.block_size {
            _ if self.config.access == Access::ReadOnly && !read_only => "is writable".to_owned(),
            Some(wanted) if wanted != block_size => format!("has blocks of {block_size} bytes, not {wanted}"),
            // A keeper takes it as it is, which is better than none; and one connection is only the default.
            _ if self.config.keep == Keep::No && wanted > 1 && there != wanted => {
                format!("has {there} connections, not {wanted}")
            }
            _ => return Ok(()),
        };
        Err(ExistingError::Differs { device: self.name(), id: self.id.clone(), how })
    }

    /// A record that is made again of what was typed and what the server says now.
    async fn rebuilt(&self) -> Result<Record, ExistingError> {
        let error =
            |error| ExistingError::Open { device: self.name(), id: self.id.clone(), error: Box::new(error) };
        let size = self.device.size()?;
        let record = Record::rebuilt(self.config, self.backend, size).await.map_err(error)?;
        tracing::warn!(
            "what was remembered of {} is lost; if its server has lost writes since it was attached, nobody notices",
            self.device.index
        );
        if let Err(error) = self.host.registry.remember(&record) {
            tracing::warn!("the device will not be remembered: {error}");
        }
        Ok(record)
    }

    /// A device whose maker was killed before he had looked at it.
    async fn finished(
        &self,
        mut record: Record,
    ) -> Result<Option<(Attached, Record, Answer)>, ExistingError> {
        tracing::warn!("{} was left half made; finishing it", self.device.index);
        let geometry = Geometry::decide(self.config, &record.export.export(), self.host.page_size);
        let verdict = match geometry {
            Ok(geometry) => settle(self.device, &geometry, self.config.timeout).await.ok(),
            Err(_) => None,
        };
        if verdict != Some(Verdict::Usable) {
            // Nobody was told of it.
            let uses = uses_of(self.device)?;
            if !uses.is_empty() {
                return Err(self.dead(format!("it was left half made, and is used{}", users(&uses))));
            }
            self.host.netlink.disconnect(self.device.index, DRIVER_PATIENCE).await?;
            self.host.registry.forget(self.backend);
            return Ok(None);
        }
        self.device.announce();
        record.phase = Phase::Ready;
        if let Err(error) = self.host.registry.remember(&record) {
            tracing::warn!("the device will not be remembered: {error}");
        }
        let attached = Attached::describe(self.device, Some(&record))?;
        Ok(Some((attached, record, Answer::Read)))
    }

    /// Whether it answers a read, if need be over a new connection.
    async fn answering(&self, record: &Record) -> Result<(), ExistingError> {
        let kept = self.host.registry.is_kept(self.backend);
        let all_dead = record.connections.iter().all(|connection| *connection == Connection::Dead);
        let keeper = record.keeper.map(|pid| format!("process {pid}")).unwrap_or_default();
        if kept && all_dead && !record.connections.is_empty() {
            return Err(self.dead(format!("its server is away, and {keeper} waits for it")));
        }
        let error = match probe(self.device).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if kept {
            return Err(self.dead(format!("{error}; {keeper} keeps it")));
        }
        tracing::warn!("{} does not answer ({error}); giving it new connections", self.device.index);
        match revive(self.config, self.host, self.device, record).await {
            Ok(Revived::Adopted(_)) => probe(self.device).await.map_err(|error| self.dead(error.to_string())),
            Ok(Revived::NothingDead) => {
                Err(self.dead(format!("{error}, and to the driver its connections live")))
            }
            Err(error) => {
                Err(ExistingError::Open { device: self.name(), id: self.id.clone(), error: Box::new(error) })
            }
        }
    }
}
