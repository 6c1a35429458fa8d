//! Structured replies, held against the real session on a simulated disk.
//!
//! Proves: READ is answered in chunks, also when it fails or is refused; BLOCK_STATUS answers once
//! per selected context; everything else keeps its short answer; a bug below still answers.

use common::handshake::context::{Agreed, Context, ReplyStyle};
use common::proto::{ChunkFlags, ChunkType, CommandFlags, CommandType, WireError};
use common::reply::{Extent, decode_error, decode_extents};
use nbd_server::durability::Mode;

use crate::disk::{Fault, Op};
use crate::world::World;

const NONE: CommandFlags = CommandFlags::NONE;

fn agreed(contexts: &[u32]) -> Agreed {
    let context = |id: &u32| Context { id: *id, name: format!("x-test:{id}") };
    Agreed { style: ReplyStyle::Structured, contexts: contexts.iter().map(context).collect() }
}

#[test]
fn a_read_is_answered_by_a_chunk_of_data() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect_as(agreed(&[]));
    let write = client.write(512, 512, 7, NONE);
    world.settle();
    assert_eq!(client.replies(), [(write, WireError::OK)], "a write has a simple answer");
    let read = client.ask(CommandType::READ, 512, 512, CommandFlags::DF);
    world.settle();
    let (header, payload) = client.chunk().expect("an answer");
    assert_eq!((header.kind, header.flags), (ChunkType::OFFSET_DATA, ChunkFlags::DONE));
    assert_eq!((header.cookie, &payload[..8]), (read, &512_u64.to_be_bytes()[..]));
    assert_eq!(payload[8..], [7; 512]);

    let empty = client.ask(CommandType::READ, 0, 0, NONE);
    world.settle();
    let (header, payload) = client.chunk().expect("an answer");
    assert_eq!((header.kind, header.flags, header.cookie), (ChunkType::NONE, ChunkFlags::DONE, empty));
    assert!(payload.is_empty());
}

#[test]
fn a_read_that_fails_or_is_refused_is_answered_by_an_error_chunk() {
    for (fault, at, error) in [
        (Some(Fault::Errno(5)), 0, WireError::EIO),
        (Some(Fault::Panic), 0, WireError::EIO),
        (None, 1 << 40, WireError::EINVAL),
    ] {
        let mut world = World::new(Mode::Writeback);
        let mut client = world.connect_as(agreed(&[]));
        if let Some(fault) = fault {
            world.disk.fail(|op| matches!(op, Op::Read(..)), fault);
        }
        let read = client.ask(CommandType::READ, at, 512, NONE);
        world.settle();
        let (header, payload) = client.chunk().expect("an answer");
        assert_eq!((header.kind, header.flags), (ChunkType::ERROR, ChunkFlags::DONE));
        let (told, text) = decode_error(&payload).expect("an error");
        assert_eq!((header.cookie, told), (read, error));
        assert!(!text.is_empty());
        world.disk.heal();
        client.ask(CommandType::READ, 0, 512, NONE);
        world.settle();
        assert_eq!(client.chunk().expect("the connection lives").0.kind, ChunkType::OFFSET_DATA);
    }
}

#[test]
fn block_status_answers_once_per_context() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect_as(agreed(&[3, 9]));
    let asked = client.ask(CommandType::BLOCK_STATUS, 512, 1024, CommandFlags::REQ_ONE);
    world.settle();
    for (id, flags) in [(3, ChunkFlags::NONE), (9, ChunkFlags::DONE)] {
        let (header, payload) = client.chunk().expect("an answer");
        assert_eq!((header.kind, header.flags), (ChunkType::BLOCK_STATUS, flags));
        assert_eq!(header.cookie, asked);
        assert_eq!(decode_extents(&payload), Ok((id, vec![Extent { length: 1024, status: 0 }])));
    }
    assert!(client.chunk().is_none(), "and no more");
}

#[test]
fn block_status_without_a_context_is_refused() {
    let mut world = World::new(Mode::Writeback);
    let mut client = world.connect_as(agreed(&[]));
    client.ask(CommandType::BLOCK_STATUS, 0, 512, NONE);
    world.settle();
    let (header, payload) = client.chunk().expect("an answer");
    assert_eq!(header.kind, ChunkType::ERROR);
    assert_eq!(decode_error(&payload).expect("an error").0, WireError::EINVAL);
}
