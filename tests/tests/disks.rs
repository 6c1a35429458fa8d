//! Proves that each kind of storage is served as it is: files to their last byte and as sparse as
//! they should be, memory, null, and block devices with sectors.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use common::proto::{CommandFlags, CommandType, TransmissionFlags, WireError};
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::mount::{self, LoopDevice};
use tests::server::Server;
use tests::tool;

const MIB: u64 = 1 << 20;
const NO_HOLE: CommandFlags = CommandFlags::NO_HOLE;

#[test]
fn files_of_odd_sizes_are_served_to_the_last_byte() {
    for size in [1, 511, 513, 4095, 65537, 1_000_003_u64] {
        let disk = Disk::holding(&pattern(6, usize::try_from(size).unwrap()));
        let server = Server::of(disk.spec());
        let mut client = Client::connect(server.endpoint());
        assert_eq!(client.export.size, size);
        let last = client.read(size - 1, 1).unwrap();
        assert_eq!(last, disk.content()[disk.content().len() - 1..]);
        assert!(client.read(0, u32::try_from(size).unwrap()).unwrap() == disk.content());
        assert_eq!(client.write(FUA, size - 1, b"Z"), WireError::OK);
        assert_eq!(client.write(PLAIN, size - 1, b"ZZ"), WireError::ENOSPC);
        assert_eq!(client.read(size - 1, 2), Err(WireError::EINVAL));
        assert_eq!(
            client.ask(CommandType::WRITE_ZEROES, PLAIN, 0, u32::try_from(size - 1).unwrap()),
            WireError::OK
        );
        assert_eq!(
            client.ask(CommandType::TRIM, PLAIN, size / 2, u32::try_from(size - size / 2).unwrap()),
            WireError::OK
        );
        assert_eq!(server.terminate().code, Some(0));
        assert!(disk.content().len() as u64 == size, "it neither grew nor shrank");
    }
}

#[test]
fn a_file_in_memory_is_served_like_any_other() {
    let Some(disk) = Disk::in_memory(8 * MIB) else { return tool::skip("needs a tmpfs at /dev/shm") };
    for mode in ["writethrough", "writeback", "early-ack", "unsafe"] {
        let server = Server::builder().export(disk.spec()).args(&["--durability", mode]).start();
        let mut client = Client::connect(server.endpoint());
        let mut wanted = vec![0; 8 << 20];
        // Short ones are done at once, long ones by a thread.
        for (seed, at, len) in [(1, 0, 4096), (2, 777, 1000), (3, 1 << 20, 300 << 10), (4, 2 << 20, 4 << 20)]
        {
            let data = pattern(seed, len);
            wanted[at..at + len].copy_from_slice(&data);
            let flags = if seed % 2 == 0 { FUA } else { PLAIN };
            assert_eq!(client.write(flags, at as u64, &data), WireError::OK, "{mode}");
        }
        wanted[2 << 20..3 << 20].fill(0);
        assert_eq!(client.ask(CommandType::WRITE_ZEROES, PLAIN, 2 * MIB, 1 << 20), WireError::OK);
        assert_eq!(client.flush(), WireError::OK);
        assert!(client.read(0, 8 << 20).unwrap() == wanted && disk.content() == wanted, "{mode}");
        assert_eq!(client.read(777, 1000).unwrap(), wanted[777..1777]);
        assert_eq!(client.ask(CommandType::WRITE_ZEROES, PLAIN, 0, 8 << 20), WireError::OK);
        drop(client);
        assert_eq!(server.terminate().code, Some(0));
    }
}

#[test]
fn a_file_in_memory_that_was_cut_short_is_an_error_that_says_where() {
    let Some(disk) = Disk::in_memory(MIB) else { return tool::skip("needs a tmpfs at /dev/shm") };
    let server = Server::of(disk.spec());
    let mut client = Client::connect(server.endpoint());
    fs::OpenOptions::new().write(true).open(disk.path()).and_then(|file| file.set_len(4096)).unwrap();
    assert_eq!(client.read(0, 8192), Err(WireError::EIO));
    assert_eq!(client.read(0, 4096).unwrap(), vec![0; 4096]);
}

#[test]
fn an_empty_file_is_served_as_nothing() {
    let disk = Disk::sparse(0);
    let server = Server::of(disk.spec());
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.export.size, 0);
    assert_eq!(
        (client.read(0, 1), client.write(PLAIN, 0, b"x")),
        (Err(WireError::EINVAL), WireError::ENOSPC)
    );
    assert_eq!((client.read(0, 0), client.flush()), (Ok(vec![]), WireError::OK));
}

#[test]
fn zeroing_and_trimming_give_space_back_and_no_hole_keeps_it() {
    for (command, flags) in [(CommandType::TRIM, PLAIN), (CommandType::WRITE_ZEROES, PLAIN)] {
        let disk = Disk::holding(&pattern(8, 8 << 20));
        let server = Server::of(disk.spec());
        let mut client = Client::connect(server.endpoint());
        if !client.export.flags.contains(TransmissionFlags::SEND_TRIM) {
            return tool::skip("needs a temporary directory that can punch holes (ext4, xfs, tmpfs)");
        }
        assert_eq!(client.flush(), WireError::OK);
        let full = disk.allocated();
        assert!(full >= 8 * MIB);
        // Edges inside a block are zeroed too.
        assert_eq!(client.ask(command, flags, 100, u32::try_from(8 * MIB - 200).unwrap()), WireError::OK);
        assert!(disk.allocated() < MIB, "{command:?} left {} bytes", disk.allocated());
        let mut expected = vec![0; 8 << 20];
        expected[..100].copy_from_slice(&pattern(8, 100));
        let end = expected.len() - 100;
        expected[end..].copy_from_slice(&pattern(8, 8 << 20)[end..]);
        assert!(disk.content() == expected);

        let zeroes = |client: &mut Client, flags| client.ask(CommandType::WRITE_ZEROES, flags, 0, 8 << 20);
        assert_eq!(zeroes(&mut client, NO_HOLE | FUA), WireError::OK);
        assert!(disk.allocated() >= 8 * MIB, "NO_HOLE allocates: {}", disk.allocated());
        assert!(disk.content().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn reading_and_zeroing_a_sparse_file_allocates_nothing() {
    let disk = Disk::sparse(1 << 40);
    let server = Server::of(disk.spec());
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.export.size, 1 << 40);
    assert_eq!(client.read((1 << 40) - 4096, 4096).unwrap(), vec![0; 4096]);
    assert_eq!(client.ask(CommandType::WRITE_ZEROES, PLAIN, 0, u32::MAX), WireError::OK);
    assert_eq!(client.ask(CommandType::TRIM, PLAIN, 1 << 39, u32::MAX), WireError::OK);
    assert!(disk.allocated() < MIB, "{}", disk.allocated());
    assert_eq!(client.write(FUA, (1 << 40) - 4096, &[9; 4096]), WireError::OK);
    assert!(disk.allocated() < MIB, "{}", disk.allocated());
    assert_eq!(client.read((1 << 40) - 4096, 4096).unwrap(), vec![9; 4096]);
}

#[test]
fn memory_is_sparse_and_null_forgets() {
    let server = Server::builder().export("memory=memory:1T").export("null=null:1T").unix().start();
    let mut memory = Client::try_connect(server.endpoint(), "memory").unwrap();
    let mut null = Client::try_connect(server.endpoint(), "null").unwrap();
    let data = pattern(2, 1 << 20);
    let end = (1 << 40) - MIB;
    for client in [&mut memory, &mut null] {
        assert_eq!(client.export.size, 1 << 40);
        assert_eq!(client.write(FUA, end, &data), WireError::OK);
        assert_eq!(client.ask(CommandType::WRITE_ZEROES, PLAIN, 0, u32::MAX), WireError::OK);
        assert_eq!(client.flush(), WireError::OK);
        assert_eq!(client.write(PLAIN, end + 1, &data), WireError::ENOSPC);
    }
    assert!(memory.read(end, 1 << 20).unwrap() == data);
    assert!(null.read(end, 1 << 20).unwrap() == vec![0; 1 << 20]);
    assert_eq!(memory.ask(CommandType::TRIM, PLAIN, end + 5, (1 << 20) - 10), WireError::OK);
    let trimmed = memory.read(end, 1 << 20).unwrap();
    assert!(trimmed[..5] == data[..5] && trimmed[5..trimmed.len() - 5].iter().all(|byte| *byte == 0));
    assert_eq!(trimmed[trimmed.len() - 5..], data[data.len() - 5..]);
}

#[test]
fn exports_of_one_server_are_apart() {
    let (one, two) = (Disk::sparse(MIB), Disk::sparse(2 * MIB));
    let named = |name: &str, disk: &Disk| format!("{name}={}", disk.path().display());
    let server = Server::builder().export(named("one", &one)).export(named("deux é", &two)).unix().start();
    for (name, disk) in [("one", &one), ("deux é", &two)] {
        let mut client = Client::try_connect(server.endpoint(), name).unwrap();
        assert_eq!(client.export.name.as_deref(), Some(name));
        assert_eq!(client.export.size, fs::metadata(disk.path()).unwrap().len());
        assert_eq!(client.write(FUA, 0, name.as_bytes()), WireError::OK);
    }
    assert!(one.content().starts_with(b"one\0") && two.content().starts_with("deux é\0".as_bytes()));
}

#[test]
fn a_block_device_is_served_with_its_sectors() {
    let disk = Disk::holding(&pattern(3, 8 << 20));
    if !mount::can_mount() {
        return;
    }
    let device = LoopDevice::over(disk.path()).expect("a loop device can be set up");
    assert!(fs::metadata(device.path()).unwrap().file_type().is_block_device());
    let serve = || Server::builder().export(device.path()).unix();
    let server = serve().start();
    let again = serve().refused();
    assert!(again.code == Some(1) && again.log.lines().count() == 1, "{again:?}");

    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.export.size, 8 * MIB);
    assert!(client.export.flags.contains(TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_TRIM));
    let mut model = disk.content();
    assert!(client.read(0, 8 << 20).unwrap() == model);
    assert_eq!(client.write(FUA, 1000, &[7; 5000]), WireError::OK);
    model[1000..6000].fill(7);
    let zeroes =
        [(PLAIN, 10_000, 70_000), (NO_HOLE, 100_001, 70_000), (FUA, 200_000, 100), (FUA, 300_032, 512)];
    for (flags, at, len) in zeroes {
        let error = client.ask(CommandType::WRITE_ZEROES, flags, at, len);
        assert_eq!(error, WireError::OK, "{len} zeroes at {at}");
        let at = usize::try_from(at).unwrap();
        model[at..at + len as usize].fill(0);
    }
    assert!(client.read(0, 8 << 20).unwrap() == model, "zeroed to the byte");
    // Whole sectors inside the range are given back, its edges stay.
    assert_eq!(client.ask(CommandType::TRIM, FUA, 4 * MIB + 100, 2 << 20), WireError::OK);
    let (start, end) = ((4 << 20) + 512, 6 << 20);
    model[start..end].fill(0);
    assert!(client.read(0, 8 << 20).unwrap() == model, "trimmed by sectors");
    assert_eq!(client.flush(), WireError::OK);
    assert!(disk.allocated() < 7 * MIB, "the loop device punched the file: {}", disk.allocated());
    assert_eq!(server.terminate().code, Some(0));
    drop(device);
    assert!(disk.content() == model);
}
