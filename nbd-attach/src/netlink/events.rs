//! What the kernel tells unasked: that a connection of a device has died, and that block devices come, change and
//! go.

use super::message::{Attribute, Command, Message};
use crate::bounded::bounded;
use crate::device::Index;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc::ENOBUFS;
use std::io;
use std::time::Duration;

/// The group's number is asked under a lock that a hung server can hold.
const PATIENCE: Duration = Duration::from_secs(5);
/// The driver's multicast group in `include/uapi/linux/nbd-netlink.h`.
const GROUP: &str = "nbd_mc_group";
/// The kernel's own uevents, not those of udev.
const KERNEL_UEVENTS: u32 = 1;

/// Deaths of connections. Only the first network namespace hears of them.
pub struct Deaths(TokioSocket);

/// Changes of block devices, likewise.
pub struct Changes(TokioSocket);

impl Deaths {
    /// Begins to listen.
    ///
    /// # Errors
    /// There is no driver, or it does not answer in time.
    pub async fn listen() -> io::Result<Deaths> {
        let group = bounded(PATIENCE, group).await.map_err(io::Error::other)??;
        let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
        // One that was never bound hears nothing.
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(group)?;
        Ok(Deaths(socket))
    }

    /// The device of the next one; none if some were missed.
    ///
    /// # Errors
    /// Netlink fails.
    pub async fn next(&mut self) -> io::Result<Option<Index>> {
        loop {
            let Some(bytes) = receive(&mut self.0).await? else { return Ok(None) };
            if let Some(index) = dead_link(&bytes) {
                return Ok(Some(index));
            }
        }
    }
}

impl Changes {
    /// Begins to listen.
    ///
    /// # Errors
    /// Netlink fails.
    pub fn listen() -> io::Result<Changes> {
        let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.socket_mut().bind(&SocketAddr::new(0, KERNEL_UEVENTS))?;
        Ok(Changes(socket))
    }

    /// Waits until an nbd device has come, changed or gone, or may have.
    ///
    /// # Errors
    /// Netlink fails.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            match receive(&mut self.0).await? {
                Some(bytes) if !is_about_nbd(&bytes) => {}
                _ => return Ok(()),
            }
        }
    }
}

/// The next message; none if some were lost.
async fn receive(socket: &mut TokioSocket) -> io::Result<Option<Vec<u8>>> {
    loop {
        match socket.recv_from_full().await {
            Ok((bytes, from)) if from.port_number() == 0 => return Ok(Some(bytes)),
            // Anyone may send to a netlink socket; only the kernel is believed.
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn dead_link(bytes: &[u8]) -> Option<Index> {
    let message = NetlinkMessage::<GenlMessage<Message>>::deserialize(bytes).ok()?;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    let message = message.into_parts().1;
    if message.command != Command::LINK_DEAD {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        Attribute::Index(number) => Index::new(*number).ok(),
        _ => None,
    })
}

/// A uevent begins with `ACTION@DEVPATH` and a zero.
fn is_about_nbd(uevent: &[u8]) -> bool {
    let head = uevent.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(head).contains("/block/nbd")
}

/// On a runtime of its own: sending may block.
fn group() -> io::Result<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = genetlink::new_connection()?;
        tokio::spawn(connection);
        let family = handle.resolve_family::<Message>().await.map_err(io::Error::other)?;
        let group = family.multicast_groups.get(GROUP).copied();
        group.ok_or_else(|| io::Error::other("the nbd driver has no group of events"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkHeader;

    #[test]
    fn only_the_death_of_a_link_is_one() {
        let sent = |command, attributes| {
            let message = GenlMessage::from_payload(Message { command, attributes });
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let index = vec![Attribute::Index(7)];
        assert_eq!(dead_link(&sent(Command::LINK_DEAD, index.clone())), Index::new(7).ok());
        assert_eq!(dead_link(&sent(Command::STATUS, index)), None);
        assert_eq!(dead_link(&sent(Command::LINK_DEAD, vec![])), None);
        assert_eq!(dead_link(&[1, 2, 3]), None);
    }

    #[test]
    fn uevents_of_other_devices_are_not_ours() {
        assert!(is_about_nbd(b"change@/devices/virtual/block/nbd0\0ACTION=change\0"));
        assert!(!is_about_nbd(b"change@/devices/virtual/block/loop0\0DEVNAME=/block/nbd\0"));
        assert!(!is_about_nbd(b""));
    }
}
