//! The machine the commands act on: its sysfs, its netlink, its page size.

use crate::device::Named;
use crate::identifier;
use crate::netlink::client::{Asker, Client};
use crate::registry::Registry;
use crate::sysfs::{DeviceDir, Sysfs};
use common::uri::{Transport, Uri};
use std::io;

/// What every command needs of the machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// What the kernel shows.
    pub sysfs: Sysfs,
    /// What it can be asked.
    pub netlink: Client,
    /// What this tool remembers.
    pub registry: Registry,
    /// The largest block the driver can make.
    pub page_size: u32,
}

impl Host {
    /// This machine.
    pub fn system() -> io::Result<Host> {
        let (sysfs, registry) = (Sysfs::system(), Registry::system());
        Ok(Host { sysfs, registry, netlink: Client::start(Asker::Helper)?, page_size: page_size() })
    }

    /// The same for a process that may be left behind.
    pub fn of_helper() -> io::Result<Host> {
        Ok(Host { netlink: Client::start(Asker::Here)?, ..Host::system()? })
    }

    /// The attached device of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &Named) -> Result<DeviceDir, NotAttached> {
        let found = match name {
            Named::Device(index) => Some(self.sysfs.device(*index)).filter(DeviceDir::attached),
            Named::Id(id) => self.by_id(&id.to_string()),
            Named::Uri(uri) => self.only(uri),
        };
        found.ok_or_else(|| NotAttached(name.clone()))
    }

    /// The device to which this is attached; none if there are several.
    fn only(&self, uri: &Uri) -> Option<DeviceDir> {
        let uri = absolute(uri);
        let is_of = |device: &DeviceDir| {
            let backend = device.backend();
            backend.as_deref().and_then(identifier::read).is_some_and(|told| told.is_of(&uri))
        };
        let mut found = self.sysfs.devices().ok()?.into_iter().filter(is_of);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// The devices that this tool attached.
    ///
    /// # Errors
    /// The kernel does not show its devices.
    pub fn ours(&self) -> io::Result<Vec<DeviceDir>> {
        let is_ours = |device: &DeviceDir| device.backend().as_deref().and_then(identifier::read).is_some();
        Ok(self.sysfs.devices()?.into_iter().filter(is_ours).collect())
    }

    /// The device that was attached by an id, which the kernel remembers.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<DeviceDir> {
        let has_id = |device: &DeviceDir| {
            let backend = device.backend();
            backend.as_deref().and_then(identifier::read).is_some_and(|told| told.id == Some(id))
        };
        self.sysfs.devices().ok()?.into_iter().find(has_id)
    }
}

/// What was typed, as it is attached: by absolute paths.
fn absolute(uri: &Uri) -> Uri {
    let mut uri = uri.clone();
    if let Transport::Unix { path } = &mut uri.transport
        && let Ok(whole) = std::path::absolute(&path)
    {
        *path = whole;
    }
    uri
}

/// There is nothing of that name.
#[derive(Debug, thiserror::Error)]
#[error("{} is not attached{}; `nbd-attach status` shows what is", .0, ambiguous(.0))]
pub struct NotAttached(Named);

/// Several devices may be attached to the same.
fn ambiguous(name: &Named) -> &'static str {
    match name {
        Named::Uri(_) => ", or more than once",
        Named::Device(_) | Named::Id(_) => "",
    }
}

/// This machine's page size.
pub fn page_size() -> u32 {
    let told = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    told.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(4096)
}
