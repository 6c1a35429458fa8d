//! An export that has grown, and its device with it: once every connection was made anew, because there are servers
//! that serve a connection no more than what they told it.

use super::renew::Failure;
use super::{DRIVER_PATIENCE, Keeper, PATIENCE, same};
use crate::event::Event;
use common::handshake::Export;
use common::handshake::client::{Answer, Client};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use tokio::time::sleep;

impl Keeper<'_> {
    /// Asks the server now and then how large the export is.
    pub(super) async fn watch_growth(&self) -> io::Result<Infallible> {
        let every = self.config.growth_interval;
        if every.is_zero() {
            return pending().await;
        }
        let mut shrunk = None;
        loop {
            sleep(every).await;
            // With no connection the driver would wait for one, and keep it out at the same time.
            if self.alive.borrow().len() < self.config.connections {
                continue;
            }
            let Some(now) = self.look().await else { continue };
            if now.size < self.size.get() {
                if shrunk != Some(now.size) {
                    self.chronicle.tell(Event::Shrunk { size_bytes: now.size })?;
                }
                shrunk = Some(now.size);
                continue;
            }
            shrunk = None;
            if let Err(difference) = same::check(&self.export.borrow(), self.size.get(), &now) {
                tracing::debug!("{}: not looking at its size: {difference}", self.index);
                continue;
            }
            self.grown.set(now.size);
        }
    }

    /// What the server says of the export, on a connection of its own; nothing if it says nothing.
    async fn look(&self) -> Option<Export> {
        let client = Client::info(&self.config.uri.export).ok()?;
        match self.opener.ask(client, PATIENCE).await {
            // Who asks may be told of more than the kernel's driver, which speaks less of the protocol.
            Ok(Answer::Export(offer)) => Some(Export { flags: self.export.borrow().flags, ..offer.export }),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!("{}: the size of the export: {error}", self.index);
                None
            }
        }
    }

    /// A connection that knows of a smaller export than there is.
    pub(super) fn outgrown(&self) -> Option<usize> {
        let grown = self.whole_blocks(self.grown.get());
        let smaller = |told: &u64| self.whole_blocks(*told) < grown;
        if grown > self.size.get() { self.told.borrow().iter().position(smaller) } else { None }
    }

    /// Makes the device as large as all its connections know the export to be.
    pub(super) async fn grow(&self) -> Result<(), Failure> {
        let told = self.told.borrow().iter().min().copied();
        let size = self.whole_blocks(told.unwrap_or(0));
        if size > self.size.get() {
            self.host.netlink.resize(self.index, &self.backend, size, DRIVER_PATIENCE).await?;
            self.size.set(size);
            self.chronicle.tell(Event::Resized { size_bytes: size })?;
        }
        Ok(())
    }

    fn whole_blocks(&self, size: u64) -> u64 {
        size - size % u64::from(self.block_size)
    }
}
