//! The messages of the generic netlink family "nbd", numbers as in the kernel's
//! `include/uapi/linux/nbd-netlink.h`.
//!
//! An attribute this crate does not know is kept as it came, so a newer kernel's answer still
//! decodes.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator, Parseable,
    ParseableParametrized, emit_u32, emit_u64, parse_string, parse_u8, parse_u32, parse_u64,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

/// One message of the family: a command and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is asked or answered.
    pub command: Command,
    /// With what.
    pub attributes: Vec<Attribute>,
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        "nbd"
    }

    fn command(&self) -> u8 {
        self.command.0
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Message, DecodeError> {
        Ok(Message { command: Command(header.cmd), attributes: parse_all(bytes)? })
    }
}

/// A command number of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub u8);

impl Command {
    /// Attach sockets to a device.
    pub const CONNECT: Command = Command(1);
    /// Detach a device.
    pub const DISCONNECT: Command = Command(2);
    /// Change an attached device.
    pub const RECONFIGURE: Command = Command(3);
    /// Told by the driver: a connection of a device has died, it does not say which.
    pub const LINK_DEAD: Command = Command(4);
    /// Ask which devices are in use; anyone may.
    pub const STATUS: Command = Command(5);
}

/// What a device shall do about its client's wishes: the attribute CLIENT_FLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags(pub u64);

impl ClientFlags {
    /// Nothing of the kind.
    pub const NONE: ClientFlags = ClientFlags(0);
    /// Disconnect when the last one who has the device open closes it.
    pub const DISCONNECT_ON_CLOSE: ClientFlags = ClientFlags(2);
    /// Remove the device node altogether once it is detached.
    pub const DESTROY_ON_DISCONNECT: ClientFlags = ClientFlags(1);
}

/// One attribute of a message, in the kernel's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// The device; absent in CONNECT, the kernel chooses.
    Index(u32),
    /// The size of the export; the driver cuts it to 512.
    SizeBytes(u64),
    /// Logical and physical block size.
    BlockSizeBytes(u64),
    /// Seconds a request may take; 0 is for ever.
    Timeout(u64),
    /// The transmission flags, as they stood on the wire.
    ServerFlags(u64),
    /// See [`ClientFlags`].
    ClientFlags(ClientFlags),
    /// The sockets, as descriptors of the sending process.
    Sockets(Vec<SocketItem>),
    /// Seconds to wait for a new socket when all are dead.
    DeadConnTimeout(u64),
    /// The answer to STATUS.
    DeviceList(Vec<DeviceItem>),
    /// Free text shown in `/sys/block/nbdN/backend`.
    BackendIdentifier(String),
    /// Something newer than this crate.
    Other(DefaultNla),
}

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const CLIENT_FLAGS: u16 = 6;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const DEVICE_LIST: u16 = 9;
const BACKEND_IDENTIFIER: u16 = 10;

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        match self {
            Attribute::Index(_) => 4,
            Attribute::SizeBytes(_)
            | Attribute::BlockSizeBytes(_)
            | Attribute::Timeout(_)
            | Attribute::ServerFlags(_)
            | Attribute::ClientFlags(_)
            | Attribute::DeadConnTimeout(_) => 8,
            Attribute::Sockets(items) => items.as_slice().buffer_len(),
            Attribute::DeviceList(items) => items.as_slice().buffer_len(),
            Attribute::BackendIdentifier(text) => text.len() + 1,
            Attribute::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Attribute::Index(_) => INDEX,
            Attribute::SizeBytes(_) => SIZE_BYTES,
            Attribute::BlockSizeBytes(_) => BLOCK_SIZE_BYTES,
            Attribute::Timeout(_) => TIMEOUT,
            Attribute::ServerFlags(_) => SERVER_FLAGS,
            Attribute::ClientFlags(_) => CLIENT_FLAGS,
            Attribute::Sockets(_) => SOCKETS | NLA_F_NESTED,
            Attribute::DeadConnTimeout(_) => DEAD_CONN_TIMEOUT,
            Attribute::DeviceList(_) => DEVICE_LIST | NLA_F_NESTED,
            Attribute::BackendIdentifier(_) => BACKEND_IDENTIFIER,
            Attribute::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Attribute::Index(value) => emit_u32(buffer, *value).expect("value_len says 4"),
            Attribute::SizeBytes(value)
            | Attribute::BlockSizeBytes(value)
            | Attribute::Timeout(value)
            | Attribute::ServerFlags(value)
            | Attribute::ClientFlags(ClientFlags(value))
            | Attribute::DeadConnTimeout(value) => emit_u64(buffer, *value).expect("value_len says 8"),
            Attribute::Sockets(items) => items.as_slice().emit(buffer),
            Attribute::DeviceList(items) => items.as_slice().emit(buffer),
            Attribute::BackendIdentifier(text) => {
                buffer[..text.len()].copy_from_slice(text.as_bytes());
                buffer[text.len()] = 0;
            }
            Attribute::Other(nla) => nla.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for Attribute {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<Attribute, DecodeError> {
        let value = nla.value();
        Ok(match nla.kind() {
            INDEX => Attribute::Index(parse_u32(value)?),
            SIZE_BYTES => Attribute::SizeBytes(parse_u64(value)?),
            BLOCK_SIZE_BYTES => Attribute::BlockSizeBytes(parse_u64(value)?),
            TIMEOUT => Attribute::Timeout(parse_u64(value)?),
            SERVER_FLAGS => Attribute::ServerFlags(parse_u64(value)?),
            CLIENT_FLAGS => Attribute::ClientFlags(ClientFlags(parse_u64(value)?)),
            SOCKETS => Attribute::Sockets(parse_all(value)?),
            DEAD_CONN_TIMEOUT => Attribute::DeadConnTimeout(parse_u64(value)?),
            DEVICE_LIST => Attribute::DeviceList(parse_all(value)?),
            BACKEND_IDENTIFIER => Attribute::BackendIdentifier(parse_string(value)?),
            _ => Attribute::Other(DefaultNla::parse(nla)?),
        })
    }
}

/// One socket handed over: a nest holding its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketItem {
    /// A descriptor of the process that sends the message.
    pub fd: u32,
}

const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

impl Nla for SocketItem {
    fn value_len(&self) -> usize {
        u32_nla(SOCK_FD, self.fd).buffer_len()
    }

    fn kind(&self) -> u16 {
        SOCK_ITEM | NLA_F_NESTED
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        u32_nla(SOCK_FD, self.fd).emit(buffer);
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for SocketItem {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<SocketItem, DecodeError> {
        let fd = member(nla.value(), SOCK_FD)?.ok_or_else(|| DecodeError::from("a socket without fd"))?;
        Ok(SocketItem { fd: parse_u32(&fd)? })
    }
}

/// One device of a STATUS answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceItem {
    /// Which device.
    pub index: u32,
    /// Whether anything holds its configuration: an attachment, or a mere open of the node.
    pub connected: bool,
}

const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

impl DeviceItem {
    fn members(self) -> [DefaultNla; 2] {
        [u32_nla(DEVICE_INDEX, self.index), DefaultNla::new(DEVICE_CONNECTED, vec![self.connected.into()])]
    }
}

impl Nla for DeviceItem {
    fn value_len(&self) -> usize {
        self.members().as_slice().buffer_len()
    }

    fn kind(&self) -> u16 {
        DEVICE_ITEM | NLA_F_NESTED
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        self.members().as_slice().emit(buffer);
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for DeviceItem {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<DeviceItem, DecodeError> {
        let need = |kind, what: &'static str| member(nla.value(), kind)?.ok_or(DecodeError::from(what));
        Ok(DeviceItem {
            index: parse_u32(&need(DEVICE_INDEX, "a device without index")?)?,
            connected: parse_u8(&need(DEVICE_CONNECTED, "a device without state")?)? != 0,
        })
    }
}

fn u32_nla(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn parse_all<A>(bytes: &[u8]) -> Result<Vec<A>, DecodeError>
where
    A: for<'a> Parseable<NlaBuffer<&'a [u8]>>,
{
    NlasIterator::new(bytes).map(|nla| A::parse(&nla?)).collect()
}

fn member(nest: &[u8], kind: u16) -> Result<Option<Vec<u8>>, DecodeError> {
    for nla in NlasIterator::new(nest) {
        let nla = nla?;
        if nla.kind() == kind {
            return Ok(Some(nla.value().to_vec()));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
