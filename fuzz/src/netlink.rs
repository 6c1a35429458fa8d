//! What the kernel's nbd driver says.

use nbd_attach::netlink::message::Message;
use netlink_packet_core::{Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};

/// The first byte is the command, the rest its attributes. What was understood is written as it is understood.
pub fn run(data: &[u8]) {
    let Some((&cmd, attributes)) = data.split_first() else { return };
    let header = GenlHeader { cmd, version: 1 };
    let Ok(message) = Message::parse_with_param(attributes, header) else { return };
    assert_eq!(message.command(), cmd);
    // Flags of attributes that are not known may change once: the library's writer sets its own.
    let message = read(&written(&message), header);
    assert_eq!(read(&written(&message), header), message);
}

fn written(message: &Message) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn read(bytes: &[u8], header: GenlHeader) -> Message {
    Message::parse_with_param(bytes, header).expect("ours is well-formed")
}
