//! The machine the commands act on: its sysfs, its netlink, its page size.

use crate::netlink::client::Client;
use crate::sysfs::Sysfs;
use std::io;

/// What every command needs of the machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// What the kernel shows.
    pub sysfs: Sysfs,
    /// What it can be asked.
    pub netlink: Client,
    /// The largest block the driver can make.
    pub page_size: u32,
}

impl Host {
    /// This machine.
    pub fn system() -> io::Result<Host> {
        Ok(Host { sysfs: Sysfs::system(), netlink: Client::start()?, page_size: page_size() })
    }
}

/// This machine's page size.
pub fn page_size() -> u32 {
    let told = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    told.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(4096)
}
