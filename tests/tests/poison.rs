//! Proves, with faults injected by `strace`, that no success follows a failed sync: every later
//! FLUSH, FUA and write fails on every connection, present and future (E1), although the disk
//! works again; reads go on; the server's exit tells. And that lesser faults are no poison.

use common::proto::{CommandFlags, CommandType, WireError};
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::trace::{self, Traced};

fn serve(mode: &str, inject: &[&str]) -> Option<(Disk, Traced)> {
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let builder = Server::builder().export(disk.spec()).unix().tcp().args(&["--durability", mode]);
    let traced = trace::start(builder, disk.dir(), inject)?;
    Some((disk, traced))
}

/// Every request of the write class and every FLUSH fails; reads do not.
fn assert_poisoned(client: &mut Client, whose: &str) {
    for flags in [PLAIN, FUA] {
        assert_eq!(client.flush(), WireError::EIO, "FLUSH on {whose}");
        assert_eq!(client.write(flags, 8192, &[1; 4096]), WireError::EIO, "WRITE {flags:?} on {whose}");
        for command in [CommandType::TRIM, CommandType::WRITE_ZEROES] {
            assert_eq!(
                client.ask(command, flags, 8192, 4096),
                WireError::EIO,
                "{command:?} {flags:?} on {whose}"
            );
        }
    }
    assert_eq!(client.read(8192, 4096).expect("reads go on"), pattern(1, 12288)[8192..], "{whose}");
}

/// Makes one sync fail by injections that are parted by spaces, mends the disk, and then nothing may succeed any more.
fn poison(mode: &str, inject: &str, provoke: impl Fn(&mut Client) -> WireError) {
    let inject: Vec<&str> = inject.split(' ').collect();
    let Some((_disk, traced)) = serve(mode, &inject) else { return };
    let mut same = Client::connect(&traced.server.endpoints()[0]);
    let mut another = Client::connect(&traced.server.endpoints()[1]);
    assert_eq!(provoke(&mut same), WireError::EIO);
    // From here on every system call succeeds: only the server's memory can say no.
    traced.release();
    assert_poisoned(&mut same, "the same connection");
    assert_poisoned(&mut another, "another connection");
    assert_poisoned(&mut Client::connect(traced.server.endpoint()), "a new connection");
    let said = traced.server.logged(" ERROR ");
    assert!(said.contains("every FLUSH and write fails from now on"), "{said}");
    let exit = traced.server.terminate();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("not everything is durable"), "{}", exit.log);
}

#[test]
fn e1_a_failed_flush() {
    poison("writeback", "fdatasync:error=EIO", |client| {
        assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
        client.flush()
    });
}

#[test]
fn e1_a_failed_fua_write() {
    poison("writeback", "fdatasync:error=EIO", |client| client.write(FUA, 0, &[1; 4096]));
}

#[test]
fn e1_a_failed_fua_trim() {
    poison("writeback", "fdatasync:error=EIO", |client| client.ask(CommandType::TRIM, FUA, 0, 4096));
}

#[test]
fn e1_a_failed_fua_write_zeroes() {
    poison("writeback", "fdatasync:error=ENOSPC", |client| {
        let flags = FUA | CommandFlags::NO_HOLE;
        let error = client.ask(CommandType::WRITE_ZEROES, flags, 0, 4096);
        assert_ne!(error, WireError::OK);
        WireError::EIO
    });
}

#[test]
fn e1_a_failed_write_in_writethrough() {
    poison("writethrough", "fdatasync:error=EIO", |client| client.write(PLAIN, 0, &[1; 4096]));
    poison("writethrough", "fdatasync:error=EIO", |client| client.ask(CommandType::TRIM, PLAIN, 0, 4096));
}

#[test]
fn e1_a_failed_write_after_an_early_acknowledgement() {
    poison("early-ack", "pwrite64,pwritev:error=EIO", |client| {
        assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
        client.flush()
    });
    poison("early-ack", "pwrite64,pwritev:error=ENOSPC", |client| {
        assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
        assert_ne!(client.flush(), WireError::OK);
        client.flush()
    });
}

#[test]
fn e4_a_late_error_reaches_the_next_write_where_no_flush_comes() {
    let Some((_disk, traced)) = serve("early-ack", &["pwrite64,pwritev:error=EIO"]) else { return };
    let mut client = Client::connect(traced.server.endpoint());
    let mut writes = 0;
    while client.write(PLAIN, 0, &[1; 4096]) == WireError::OK {
        writes += 1;
        assert!(writes < 1_000_000, "nobody tells");
    }
    traced.release();
    let mut another = Client::connect(traced.server.endpoint());
    assert_eq!(another.write(PLAIN, 8192, &[1; 4096]), WireError::EIO);
    assert_eq!(another.flush(), WireError::EIO);
    assert_eq!(traced.server.terminate().code, Some(1));
}

#[test]
fn a_full_disk_is_no_poison() {
    for mode in ["writeback", "writethrough"] {
        let Some((_disk, traced)) = serve(mode, &["pwritev2,pwrite64:error=ENOSPC"]) else { return };
        let mut client = Client::connect(traced.server.endpoint());
        assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::ENOSPC);
        assert_eq!(client.write(FUA, 0, &[1; 4096]), WireError::ENOSPC);
        traced.release();
        assert_eq!(client.write(FUA, 0, &[2; 4096]), WireError::OK, "{mode}: there is space again");
        assert_eq!(client.flush(), WireError::OK);
        assert_eq!(traced.server.terminate().code, Some(0));
    }
}

#[test]
fn a_failed_write_or_read_fails_alone() {
    let Some((_disk, traced)) = serve("writeback", &["pwrite64,preadv2:error=EIO"]) else { return };
    let mut client = Client::connect(traced.server.endpoint());
    for flags in [PLAIN, FUA] {
        // Nothing was written, so there is nothing to sync, and nothing that was acknowledged is lost.
        assert_eq!(client.write(flags, 0, &[1; 4096]), WireError::EIO);
    }
    assert_eq!(client.read(0, 4096), Err(WireError::EIO));
    traced.release();
    assert_eq!(client.read(4096, 4096).unwrap(), pattern(1, 8192)[4096..]);
    assert_eq!(client.write(PLAIN, 0, &[2; 4096]), WireError::OK);
    assert_eq!(client.flush(), WireError::OK);
    assert_eq!(traced.server.terminate().code, Some(0));
}

#[test]
fn a_file_that_is_truncated_while_it_is_served_has_lost_data() {
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let server = Server::builder().export(disk.spec()).unix().start();
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.write(FUA, 0, &[1; 4096]), WireError::OK);
    let file = std::fs::File::options().write(true).open(disk.path()).expect("the image is there");
    file.set_len(1 << 19).expect("it can be truncated");
    assert_eq!(client.write(FUA, 0, &[2; 4096]), WireError::EIO);
    assert_poisoned(&mut Client::connect(server.endpoint()), "a new connection");
    let said = server.logged(" ERROR ");
    assert!(said.contains("the file was truncated: it has 524288 bytes"), "{said}");
}
