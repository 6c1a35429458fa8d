//! An export that has grown, and its device with it: once every connection was made anew, because there are servers
//! that serve a connection no more than what they told it.

use super::renew::Failure;
use super::{Keeper, PATIENCE};
use crate::event::Event;
use crate::netlink::client::NetlinkError;
use crate::same::{self, Told};
use common::handshake::Export;
use common::handshake::client::{Answer, Client};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;
use tokio::time::sleep;

/// The driver waits for every request in flight before it resizes, and is not asked for anything else meanwhile.
const RESIZE_PATIENCE: Duration = Duration::from_secs(600);
/// Between two tries.
const RESIZE_PAUSE: Duration = Duration::from_secs(2);

impl Keeper<'_> {
    /// Asks the server now and then how large the export is.
    pub(super) async fn watch_growth(&self) -> Infallible {
        let every = self.config.growth_interval;
        if every.is_zero() {
            return pending().await;
        }
        let mut shrunk = None;
        loop {
            sleep(every).await;
            // With no connection the driver would wait for one, and keep it out at the same time.
            if self.living().is_none_or(|all| all.len() < self.config.connections) {
                continue;
            }
            self.look_at_disk().await;
            let Some(now) = self.look().await else { continue };
            if now.export.size < self.size.get() {
                if shrunk != Some(now.export.size) {
                    self.chronicle.tell(Event::Shrunk { size_bytes: now.export.size });
                }
                shrunk = Some(now.export.size);
                continue;
            }
            shrunk = None;
            if let Err(difference) = same::check(&self.told.borrow(), self.size.get(), &now) {
                tracing::debug!("{}: not looking at its size: {difference}", self.index);
                continue;
            }
            self.grown.set(now.export.size);
        }
    }

    /// What the server says of the export, on a connection of its own; nothing if it says nothing.
    async fn look(&self) -> Option<Told> {
        match self.opener.ask(|| Client::info(&self.config.uri.export), PATIENCE).await {
            // Who asks may be told of more than the kernel's driver, which speaks less of the protocol.
            Ok(Answer::Export(offer)) => {
                let export = Export { flags: self.told.borrow().export.flags, ..offer.export };
                Some(Told { export, epoch: same::epoch_of(&offer.contexts), identity: None })
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!("{}: the size of the export: {error}", self.index);
                None
            }
        }
    }

    /// Connections, of those that live, that know of a smaller export than there is. The first goes alone, and once its
    /// successor knows better, all others at once: what is in flight waits for its time limit twice at most.
    pub(super) fn outgrown(&self, living: &BTreeSet<usize>) -> Vec<usize> {
        let grown = self.whole_blocks(self.grown.get());
        if grown <= self.size.get() {
            return vec![];
        }
        let sizes = self.sizes.borrow();
        let smaller = |told: &u64| self.whole_blocks(*told) < grown;
        let others = if sizes.iter().all(smaller) { 1 } else { sizes.len() };
        let outgrown = living.iter().filter(|place| sizes.get(**place).is_some_and(smaller));
        outgrown.copied().take(others).collect()
    }

    /// Makes the device as large as all its connections know the export to be, whenever they know of more. That this
    /// takes long, or fails, has nothing to do with the connections.
    pub(super) async fn grow(&self) -> Infallible {
        let mut said = String::new();
        loop {
            self.larger.notified().await;
            while let Some(size) = self.larger() {
                match self.resize(size).await {
                    Ok(()) => {
                        said.clear();
                        self.size.set(size);
                        self.chronicle.tell(Event::Resized { size_bytes: size });
                    }
                    Err(failure) => self.tell_once(None, &failure, &mut said),
                }
                sleep(RESIZE_PAUSE).await;
            }
        }
    }

    /// What the device may grow to, while all its connections live.
    fn larger(&self) -> Option<u64> {
        let told = self.sizes.borrow().iter().min().copied();
        let size = self.whole_blocks(told.unwrap_or(0));
        let all_alive = self.alive.borrow().len() == self.config.connections;
        (size > self.size.get() && all_alive).then_some(size)
    }

    async fn resize(&self, size: u64) -> Result<(), Failure> {
        match self.host.netlink.resize(self.index, &self.backend, size, RESIZE_PATIENCE).await {
            // It may have been done all the same.
            Err(NetlinkError::Deadline(_)) if self.host.sysfs.device(self.index).size()? == size => Ok(()),
            done => Ok(done?),
        }
    }

    fn whole_blocks(&self, size: u64) -> u64 {
        size - size % u64::from(self.block_size)
    }
}
