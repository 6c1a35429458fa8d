//! Proves, on disks that fail in the kernel with nothing injected, that what is answered as durable is on the medium:
//! FUA, FLUSH and every write in writethrough, from one connection and from sixteen, buffered and direct, on files and
//! block devices. `cargo xtask failing-disk` does the same ten thousand times.

use common::proto::WireError;
use tests::client::{Client, FUA, PLAIN};
use tests::failing_disk::report::{Cell, MODES, STORAGES};
use tests::failing_disk::{FailingDisk, HALF, Medium, OLD};
use tests::mount;
use tests::server::Server;

/// Two trials for each mode, each of which has a round after a rest or comes to each plan several times.
const ROUNDS: u64 = 96;

/// Every mode keeps its promises on this kind of storage.
fn keeps_its_promises(storage: &str) {
    if !mount::can_mount() {
        return;
    }
    let storage = STORAGES.iter().find(|it| it.name == storage).expect("a kind of storage");
    let cells =
        MODES.iter().map(|mode| Cell::of(storage, mode, ROUNDS, |_, _| {}).expect("a trial can be made"));
    let faults: Vec<String> = cells.filter_map(|cell| cell.fault()).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_file() {
    keeps_its_promises("file");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_file_with_threads() {
    keeps_its_promises("file, threads");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_direct_file() {
    keeps_its_promises("file --direct");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_direct_file_with_threads() {
    keeps_its_promises("file --direct, threads");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_device() {
    keeps_its_promises("device");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_device_with_threads() {
    keeps_its_promises("device, threads");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_direct_device() {
    keeps_its_promises("device --direct");
}

#[test]
fn promises_are_kept_on_a_failing_disk_by_a_direct_device_with_threads() {
    keeps_its_promises("device --direct, threads");
}

/// What the judge reads is the medium and not the page cache, and only the second half fails.
#[test]
fn a_failing_disk_keeps_what_is_written_to_its_good_half_and_nothing_else() {
    if !mount::can_mount() {
        return;
    }
    for medium in [Medium::File, Medium::Device] {
        let disk = FailingDisk::make(medium).expect("a disk can be made");
        let server = Server::of(disk.path());
        let mut client = Client::connect(server.endpoint());
        let (good, failing) = (4096, HALF + 4096);
        let held = |at: u64| {
            let content = disk.after_power_cut().expect("the medium can be read");
            content[usize::try_from(at).expect("it is small")..][..4096].to_vec()
        };
        assert_eq!(client.write(PLAIN, good, &[1; 4096]), WireError::OK);
        assert_eq!(held(good), [OLD; 4096], "{medium:?}: nothing is stable before a sync");
        assert_eq!(client.write(FUA, 2 * good, &[2; 4096]), WireError::OK, "the good half works");
        assert_eq!(held(2 * good), [2; 4096]);
        assert_eq!(client.write(PLAIN, failing, &[3; 4096]), WireError::OK, "the page cache takes it");
        assert_ne!(client.flush(), WireError::OK, "{medium:?}: a write is lost");
        assert_ne!(held(failing), [3; 4096]);
    }
}
