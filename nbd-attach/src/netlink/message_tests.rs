//! Proves that every message survives its own encoding, that the bytes are the kernel's, and that
//! no bytes from outside make the decoder panic.

use super::*;
use proptest::prelude::*;

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = vec![0xaa; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn decode(command: u8, bytes: &[u8]) -> Result<Message, DecodeError> {
    Message::parse_with_param(bytes, GenlHeader { cmd: command, version: 1 })
}

#[test]
#[cfg(target_endian = "little")]
fn connect_looks_as_the_kernel_expects() {
    let message = Message {
        command: Command::CONNECT,
        attributes: vec![
            Attribute::Sockets(vec![SocketItem { fd: 5 }, SocketItem { fd: 6 }]),
            Attribute::SizeBytes(0x1_0000),
            Attribute::BackendIdentifier("ab".into()),
        ],
    };
    #[rustfmt::skip]
    let expected = [
        28, 0, 7, 0x80,
            12, 0, 1, 0x80,  8, 0, 1, 0,  5, 0, 0, 0,
            12, 0, 1, 0x80,  8, 0, 1, 0,  6, 0, 0, 0,
        12, 0, 2, 0,  0, 0, 1, 0, 0, 0, 0, 0,
        7, 0, 10, 0,  b'a', b'b', 0, 0,
    ];
    assert_eq!(encode(&message), expected);
}

#[test]
fn a_status_answer_without_nested_flags_decodes() {
    let answer = [
        24u16.to_ne_bytes(),
        9u16.to_ne_bytes(),
        20u16.to_ne_bytes(),
        1u16.to_ne_bytes(),
        8u16.to_ne_bytes(),
        1u16.to_ne_bytes(),
    ]
    .concat();
    let answer = [answer, 3u32.to_ne_bytes().to_vec()].concat();
    let answer =
        [answer, 5u16.to_ne_bytes().to_vec(), 2u16.to_ne_bytes().to_vec(), vec![1, 0, 0, 0]].concat();
    let message = decode(5, &answer).unwrap();
    let expected = DeviceItem { index: 3, connected: true };
    assert_eq!(message.attributes, [Attribute::DeviceList(vec![expected])]);
}

#[test]
fn an_incomplete_item_is_an_error() {
    assert!(decode(5, &[8, 0, 9, 0, 4, 0, 1, 0]).is_err());
    assert!(decode(5, &[8, 0, 7, 0, 4, 0, 1, 0]).is_err());
}

fn attribute() -> impl Strategy<Value = Attribute> {
    let device = (any::<u32>(), any::<bool>());
    prop_oneof![
        any::<u32>().prop_map(Attribute::Index),
        any::<u64>().prop_map(Attribute::SizeBytes),
        any::<u64>().prop_map(Attribute::BlockSizeBytes),
        any::<u64>().prop_map(Attribute::Timeout),
        any::<u64>().prop_map(Attribute::ServerFlags),
        any::<u64>().prop_map(|flags| Attribute::ClientFlags(ClientFlags(flags))),
        any::<u64>().prop_map(Attribute::DeadConnTimeout),
        prop::collection::vec(any::<u32>().prop_map(|fd| SocketItem { fd }), 0..20)
            .prop_map(Attribute::Sockets),
        prop::collection::vec(device.prop_map(|(index, connected)| DeviceItem { index, connected }), 0..20)
            .prop_map(Attribute::DeviceList),
        "[ -~]{0,80}".prop_map(Attribute::BackendIdentifier),
        (11u16..100, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, value)| Attribute::Other(DefaultNla::new(kind, value))),
    ]
}

proptest! {
    #[test]
    fn what_is_written_reads_back(command in 1u8..6, attributes in prop::collection::vec(attribute(), 0..12)) {
        let message = Message { command: Command(command), attributes };
        prop_assert_eq!(decode(command, &encode(&message)).unwrap(), message);
    }

    #[test]
    fn no_bytes_make_it_panic(command in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(command, &bytes);
    }

    #[test]
    fn no_damage_makes_it_panic(
        attributes in prop::collection::vec(attribute(), 1..6), at in any::<usize>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode(&Message { command: Command::STATUS, attributes });
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = decode(5, &bytes);
    }
}
