//! Proves that it makes no difference how operations reach the disk: by io_uring or by threads, through
//! the page cache or around it.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;

use common::proto::WireError;
use tempfile::TempDir;
use tests::client::{Client, PLAIN};
use tests::disk::{Disk, pattern};
use tests::model::Rng;
use tests::server::{Builder, Server};
use tests::tool;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Those that there are here: a container may forbid io_uring.
fn engines() -> &'static [&'static str] {
    static ENGINES: LazyLock<&[&str]> = LazyLock::new(|| {
        let server = Server::builder().export("memory:1M").unix().start();
        if server.log().contains("engine: io_uring") {
            return &["io-uring", "threads"];
        }
        eprintln!("only threads are tried: there is no io_uring here");
        &["threads"]
    });
    &ENGINES
}

/// A file where direct I/O works: /tmp may be in memory.
fn image(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made");
    let path = dir.path().join("image");
    std::fs::write(&path, content).expect("an image can be written");
    (dir, path)
}

fn serve(path: &PathBuf, args: &[&str]) -> Server {
    Server::builder().export(path).unix().tcp().args(args).start()
}

#[test]
fn direct_io_takes_requests_of_any_length_at_any_place() {
    for engine in engines() {
        for mode in ["writeback", "writethrough", "early-ack"] {
            let mut model = pattern(3, 256 << 10);
            let (_dir, path) = image(&model);
            let server = serve(&path, &["--direct", "--engine", engine, "--durability", mode]);
            let mut client = Client::connect(server.endpoint());
            let mut rng = Rng::seeded();
            for round in 0..200_u8 {
                let at = rng.below(model.len() as u64);
                let most = [700, 9000, 70_000][usize::from(round % 3)].min(model.len() as u64 - at);
                // Whole blocks now and then.
                let (at, len) = match round % 4 {
                    0 => (at / 4096 * 4096, 4096),
                    _ => (at, 1 + rng.below(most)),
                };
                let place = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
                if rng.below(2) == 0 {
                    assert_eq!(client.write(PLAIN, at, &vec![round; place.len()]), WireError::OK);
                    model[place].fill(round);
                } else {
                    let read = client.read(at, u32::try_from(len).unwrap()).unwrap();
                    assert!(read == model[place], "{engine}, {mode}: {len} bytes at {at}");
                }
            }
            assert_eq!(client.flush(), WireError::OK);
            client.disconnect();
            assert_eq!(server.terminate().code, Some(0));
            assert!(std::fs::read(&path).unwrap() == model, "{engine}, {mode}");
        }
    }
}

#[test]
fn parts_of_one_block_are_written_around_the_page_cache_by_many_at_once() {
    const PART: u32 = 64;
    for engine in engines() {
        let (_dir, path) = image(&[0; 64 << 10]);
        let server = serve(&path, &["--direct", "--engine", engine]);
        thread::scope(|scope| {
            for n in 0..16_u8 {
                let mut client = Client::connect(&server.endpoints()[usize::from(n % 2)]);
                scope.spawn(move || {
                    for round in 1..=20 {
                        let error = client.write(PLAIN, (u32::from(n) * PART).into(), &[round * 7 + n; 64]);
                        assert_eq!(error, WireError::OK);
                    }
                });
            }
        });
        let mut client = Client::connect(server.endpoint());
        let block = client.read(0, 16 * PART).unwrap();
        let wanted: Vec<u8> = (0..16).flat_map(|n| [20 * 7 + n; 64]).collect();
        assert!(block == wanted, "{engine}: some write took another one's part with it");
    }
}

#[test]
fn what_direct_io_cannot_serve_is_refused_in_words() {
    let (_dir, path) = image(&[1; 1000]);
    let exit = Server::builder().export(&path).unix().args(&["--direct"]).refused();
    assert_eq!(exit.code, Some(1));
    assert!(exit.log.contains("1000") && exit.log.contains("multiple"), "{}", exit.log);
    // A file system in a process has none.
    let exit =
        Server::builder().export("/proc/self/status").unix().args(&["--direct", "--read-only"]).refused();
    assert!(exit.log.contains("direct I/O"), "{}", exit.log);
}

#[test]
fn direct_io_leaves_the_page_cache_alone() {
    let (_dir, path) = image(&pattern(1, 1 << 20));
    let file = OpenOptions::new().read(true).open(&path).unwrap();
    for engine in engines() {
        let cached = || {
            use std::os::fd::AsRawFd;
            let fd = file.as_raw_fd();
            let status = std::process::Command::new("fincore")
                .args([
                    "--bytes",
                    "--noheadings",
                    "--output",
                    "RES",
                    &format!("/proc/{}/fd/{fd}", std::process::id()),
                ])
                .output();
            let said = status.expect("fincore of util-linux can be run");
            String::from_utf8_lossy(&said.stdout).trim().parse::<u64>().expect("fincore tells a number")
        };
        file.sync_all().unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert_eq!(cached(), 0);
        let server = serve(&path, &["--direct", "--engine", engine]);
        let mut client = Client::connect(server.endpoint());
        assert!(client.read(0, 1 << 20).unwrap() == pattern(1, 1 << 20));
        assert_eq!(client.write(PLAIN, 0, &pattern(1, 64 << 10)), WireError::OK);
        assert_eq!(cached(), 0, "{engine}");
    }
}

/// Without io_uring: as in a container that forbids it.
fn forbidden(disk: &Disk) -> Option<Builder> {
    let strace = tool::find("strace", "strace")?;
    let words = ["-D", "-f", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e"];
    let builder = Server::builder().export(disk.spec()).unix().under([strace]).under(words);
    Some(builder.under(["inject=io_uring_setup:error=EPERM"]))
}

#[test]
fn where_io_uring_is_forbidden_threads_do_it_and_the_log_says_so() {
    let disk = Disk::holding(&pattern(2, 1 << 20));
    let Some(builder) = forbidden(&disk) else { return };
    let server = builder.start();
    let said = server.logged("engine: threads, as there is no io_uring");
    assert!(said.contains("not permitted"), "{said}");
    let mut client = Client::connect(server.endpoint());
    assert!(client.read(0, 64 << 10).unwrap() == pattern(2, 64 << 10));
    assert_eq!(client.write(PLAIN, 4096, &[9; 4096]), WireError::OK);
    drop(server);
    let exit = forbidden(&disk).expect("as before").args(&["--engine", "io-uring"]).refused();
    assert!(exit.log.contains("--engine io-uring"), "{}", exit.log);
}

#[test]
fn reads_that_miss_the_cache_are_right_by_either_engine() {
    let content = pattern(5, 4 << 20);
    for engine in engines() {
        let (_dir, path) = image(&content);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let server = serve(&path, &["--engine", engine]);
        let mut client = Client::connect(server.endpoint());
        let mut asked = Vec::new();
        for n in 0..64_u64 {
            let at = n * 61 % 64 * 64 * KIB + 17;
            asked.push((client.send(common::proto::CommandType::READ, PLAIN, at, 60_000), at));
        }
        for _ in 0..asked.len() {
            let reply = client.reply();
            let (_, at) = asked.iter().find(|(cookie, _)| *cookie == reply.cookie).unwrap();
            let at = usize::try_from(*at).unwrap();
            assert!(reply.data == content[at..at + 60_000], "{engine}: at {at}");
        }
    }
}

#[test]
fn long_reads_are_sent_whole_and_a_file_that_shrinks_is_told_as_an_error() {
    let content = pattern(6, 8 << 20);
    for disk in [Some(Disk::sparse(0)), Disk::in_memory(0)].into_iter().flatten() {
        std::fs::write(disk.path(), &content).unwrap();
        long_reads_of(&disk, &content);
    }
}

fn long_reads_of(disk: &Disk, content: &[u8]) {
    let server = Server::builder().export(disk.spec()).unix().tcp().start();
    for endpoint in server.endpoints() {
        let mut client = Client::connect(endpoint);
        for (at, len) in [(0_u32, 8 << 20), (12_345, 1 << 20), (4096, 65_536), (8 << 20, 0)] {
            let read = client.read(at.into(), len).expect("it is there");
            let (at, len) = (at as usize, len as usize);
            assert!(read == content[at..at + len], "{len} bytes at {at}");
        }
    }
    OpenOptions::new()
        .write(true)
        .open(disk.path())
        .and_then(|file| file.set_len(MIB))
        .expect("it can be cut");
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.read(0, 2 << 20), Err(WireError::EIO));
    assert!(client.read(0, 1 << 20).expect("it is there") == content[..1 << 20]);
}

#[test]
fn a_long_read_sees_what_early_ack_still_holds() {
    let disk = Disk::holding(&[0; 1 << 20]);
    let args = ["--durability", "early-ack", "--dirty-age", "60"];
    let server = Server::builder().export(disk.spec()).unix().args(&args).start();
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.write(PLAIN, 300_000, &[7; 4096]), WireError::OK);
    let read = client.read(0, 1 << 20).unwrap();
    assert!(read[300_000..304_096] == [7; 4096] && read[304_096..].iter().all(|byte| *byte == 0));
}
