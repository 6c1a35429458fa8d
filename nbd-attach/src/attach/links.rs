//! The connections of a device to be: as many as were asked for, and all of them to the same thing.

use super::AttachError;
use super::geometry::{Geometry, GeometryError};
use crate::config::{AttachConfig, Keep};
use crate::device::Index;
use crate::dial::hasten;
use crate::netlink::client::{Connect, Socket};
use crate::opener::{Ends, Expected, OpenError, Opener};
use crate::same::Told;
use crate::tls::kernel::Cipher;
use common::proto::TransmissionFlags;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// For connecting, for TLS and for the NBD handshake of one connection, each.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for a server that is waited for.
const WAIT_PAUSE: Duration = Duration::from_millis(500);

/// Connections whose handshake is done.
pub(super) struct Links {
    pub(super) sockets: Vec<Socket>,
    /// What the server said on each.
    pub(super) told: Told,
    pub(super) ends: Vec<Option<Ends>>,
    pub(super) cipher: Option<Cipher>,
}

/// Connects and negotiates, as often as asked. A server that is not there yet may be waited for.
pub(super) async fn open_links(config: &AttachConfig, opener: &Opener<'_>) -> Result<Links, AttachError> {
    let until = Instant::now() + config.wait;
    let mut said = String::new();
    loop {
        match open_all(config, opener).await {
            Err(AttachError::Open(error)) if Instant::now() < until && may_come(&error) => {
                if said != error.to_string() {
                    said = error.to_string();
                    tracing::info!("waiting for the server: {said}");
                }
                sleep(WAIT_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Whether it might be otherwise a little later.
fn may_come(error: &OpenError) -> bool {
    !matches!(error, OpenError::Tls(_) | OpenError::Different(_))
}

/// Whether an export with these flags takes so many connections: servers that allow one may let the second
/// one wait for ever.
fn may_share(connections: usize, flags: TransmissionFlags) -> Result<(), GeometryError> {
    if connections > 1 && !flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
        return Err(GeometryError::SingleConnection);
    }
    Ok(())
}

async fn open_all(config: &AttachConfig, opener: &Opener<'_>) -> Result<Links, AttachError> {
    let first = opener.open(Expected::Anything, OPEN_PATIENCE).await?;
    tracing::debug!("connection 1: {:?}", first.told);
    may_share(config.connections, first.told.export.flags)?;
    let told = first.told.clone();
    let mut opened = vec![first];
    for number in 2..=config.connections {
        let next = opener.open(Expected::Same(&told, told.export.size), OPEN_PATIENCE).await;
        opened.push(next.map_err(|error| match error {
            OpenError::Different(difference) => AttachError::Different { number, difference },
            other => other.into(),
        })?);
    }
    let mut links = Links { sockets: vec![], told, ends: vec![], cipher: None };
    for opened in opened {
        if config.keep == Keep::Reconnect {
            hasten(&opened.socket, config.timeout);
        }
        links.sockets.push(Socket::new(opened.socket));
        links.ends.push(opened.ends);
        links.cipher = opened.cipher;
    }
    Ok(links)
}

impl Links {
    /// What the driver is asked with.
    pub(super) fn connect(
        &self,
        config: &AttachConfig,
        backend: &str,
        geometry: &Geometry,
        index: Option<Index>,
    ) -> Connect {
        Connect {
            index,
            size: geometry.size,
            block_size: geometry.block_size,
            timeout: config.timeout,
            dead_connection_timeout: config.dead_connection_timeout,
            server_flags: geometry.flags.0,
            backend: backend.to_owned(),
            sockets: self.sockets.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_connections_must_be_allowed() {
        assert!(may_share(1, TransmissionFlags::NONE).is_ok());
        assert!(may_share(4, TransmissionFlags::CAN_MULTI_CONN).is_ok());
        assert!(matches!(may_share(2, TransmissionFlags::NONE), Err(GeometryError::SingleConnection)));
    }
}
