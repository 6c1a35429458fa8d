//! Proves that nothing that is printed or logged can stand in the way: whatever becomes of standard output and standard
//! error, every command of the binaries ends with the right exit code, and a server serves and stops. And that a log
//! says each thing once, with the name of the export.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::proto::{CommandFlags, CommandType, WireError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::client::{Client, PLAIN};
use tests::crash::crash_tool;
use tests::disk::Disk;
use tests::endpoint::Endpoint;
use tests::operator::Operator;
use tests::server::{Server, attach_tool, server_tool};
use tests::{PATIENCE, tool, wait_until};

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was closed before the command began.
    Closed,
    /// A disk that is full.
    Full,
    /// A pipe whose reader has gone.
    Unwanted,
    /// A pipe that nobody reads.
    Unread,
}

const FATES: [Fate; 4] = [Fate::Closed, Fate::Full, Fate::Unwanted, Fate::Unread];

/// A stream with that fate, and what must live as long.
fn stream(fate: Fate) -> (Stdio, Option<OwnedFd>) {
    match fate {
        Fate::Closed => (Stdio::null(), None),
        Fate::Full => {
            let full = OpenOptions::new().write(true).open("/dev/full").expect("there is /dev/full");
            (full.into(), None)
        }
        Fate::Unwanted => {
            let (read, write) = nix::unistd::pipe().expect("a pipe");
            drop(read);
            (write.into(), None)
        }
        Fate::Unread => {
            let (read, write) = nix::unistd::pipe().expect("a pipe");
            (write.into(), Some(read))
        }
    }
}

/// Runs a command with one stream's fate; gives its exit code, and what it wrote to the other.
fn end(tool: &Path, args: &[&str], out: Option<Fate>, err: Option<Fate>) -> (Option<i32>, String) {
    let mut heard = tempfile::tempfile().expect("a temporary file can be made");
    let whole = || Stdio::from(heard.try_clone().expect("a descriptor can be copied"));
    let ((stdout, held_out), (stderr, held_err)) =
        (out.map_or_else(|| (whole(), None), stream), err.map_or_else(|| (whole(), None), stream));
    // Rust opens closed ones as /dev/null before `main`; a shell closes them as people do.
    let mut closing = String::new();
    closing += if out == Some(Fate::Closed) { ">&- " } else { "" };
    closing += if err == Some(Fate::Closed) { "2>&- " } else { "" };
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("exec \"$0\" \"$@\" {closing}")])
        .arg(tool)
        .args(args)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .expect("there is a shell");
    let status = tool::end_of(&mut child, PATIENCE, || false);
    drop((held_out, held_err));
    let mut said = String::new();
    std::io::Seek::rewind(&mut heard).and_then(|()| heard.read_to_string(&mut said)).expect("it is text");
    let status = status.unwrap_or_else(|| panic!("{args:?} with {out:?}, {err:?} does not end: {said}"));
    (status.code(), said)
}

/// A recording, and other things that commands need.
fn recorded(dir: &Path) {
    let log = dir.join("log");
    let record = ["--record", log.to_str().expect("temporary paths are text")];
    let server = Server::builder().export("memory:1M").unix().args(&record).start();
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.write(PLAIN, 0, &[1; 4096]), WireError::OK);
    assert_eq!(client.flush(), WireError::OK);
    drop(client);
    assert_eq!(server.terminate().code, Some(0));
    fs::write(dir.join("image"), [0; 1 << 20]).expect("a file can be made");
}

/// A command, its exit code, and that where standard output is full.
type Due<'a> = (&'a Path, &'a [&'a str], i32, i32);

/// Runs each with every fate of either stream. `MADE` in its words is a path of its own in the directory.
fn end_as_they_should(commands: &[Due<'_>], dir: &Path) {
    let mut made = 0;
    for (tool, args, code, if_full) in commands {
        for fate in FATES {
            for stdout in [true, false] {
                made += 1;
                let new = dir.join(format!("made-{made}"));
                let new = new.to_str().expect("temporary paths are text");
                let args: Vec<&str> = args.iter().map(|arg| if *arg == "MADE" { new } else { arg }).collect();
                let (out, err) = if stdout { (Some(fate), None) } else { (None, Some(fate)) };
                let due = if stdout && fate == Fate::Full { *if_full } else { *code };
                let (found, said) = end(tool, &args, out, err);
                assert_eq!(found, Some(due), "{args:?} with {out:?} and {err:?}: {said}");
                assert!(!said.contains("panicked"), "{args:?} with {out:?} and {err:?}: {said}");
                if stdout && fate == Fate::Full && *code == 0 {
                    assert!(said.contains("No space left on device"), "{args:?}: {said}");
                }
            }
        }
    }
}

#[test]
fn every_command_ends_as_it_should_whatever_its_outputs_are() {
    let disk = Disk::sparse(1 << 20);
    let operator = Operator::beside(&disk);
    let server = operator.of(Server::builder().export("memory:1M").unix()).start();
    recorded(disk.dir());
    let path = |name: &str| disk.dir().join(name).to_str().expect("temporary paths are text").to_owned();
    let (admin, log, image) = (operator.socket().to_str().expect("text"), path("log"), path("image"));
    fs::write(path("config"), "[[export]]\nname = \"a\"\nserve = \"memory:1M\"\n").expect("a file");
    let (ours, crash) = (server_tool(), crash_tool());
    let config = path("config");
    let commands: &[Due<'_>] = &[
        (ours, &["--help"], 0, 1),
        (ours, &["--version"], 0, 1),
        (ours, &["--nonsense"], 2, 2),
        (ours, &["/nowhere/at/all"], 1, 1),
        (ours, &["check-config", &config], 0, 1),
        (ours, &["check-config", "/nowhere"], 1, 1),
        (ours, &["ctl", "--admin", admin, "list"], 0, 1),
        (ours, &["ctl", "--admin", admin, "list", "--json"], 0, 1),
        (ours, &["ctl", "--admin", admin, "drain"], 0, 1),
        (ours, &["ctl", "--admin", admin, "mode", "writethrough"], 0, 1),
        (ours, &["ctl", "--admin", admin, "clear-poison"], 1, 1),
        (crash, &["--help"], 0, 2),
        (crash, &["show", &log], 0, 2),
        (crash, &["show", &log, "--json"], 0, 2),
        (crash, &["explore", &log, "--budget", "10"], 0, 2),
        (crash, &["explore", &log, "--budget", "10", "--json"], 0, 2),
        (crash, &["explore", &log, "--contract", "no-flush"], 1, 2),
        (crash, &["check", &log, "--image", &image], 1, 2),
        (crash, &["generate", "--raw", "10"], 0, 2),
        (crash, &["generate", "--steps", "1"], 0, 2),
        (crash, &["export", &log, "MADE"], 0, 2),
        (crash, &["mark", "--to", "/nowhere", "text"], 2, 2),
        (crash, &["--version"], 0, 2),
        (crash, &["--nonsense"], 2, 2),
        (crash, &["import", "/nowhere", "MADE"], 2, 2),
    ];
    end_as_they_should(commands, disk.dir());
    drop(server);
}

#[test]
fn every_command_of_nbd_attach_ends_as_it_should_whatever_its_outputs_are() {
    let server = Server::of("memory:1M");
    let attach = attach_tool();
    let Endpoint::Unix(socket) = server.endpoint() else { panic!("it is a Unix socket") };
    let (uri, gone) = (format!("nbd+unix:///?socket={}", socket.display()), "nbd+unix:///?socket=/nowhere");
    let commands: &[Due<'_>] = &[
        (attach, &["--help"], 0, 1),
        (attach, &["--version"], 0, 1),
        (attach, &["--nonsense"], 2, 2),
        (attach, &["info", &uri], 0, 1),
        (attach, &["info", "--json", &uri], 0, 1),
        (attach, &["info", gone], 5, 5),
        (attach, &["attach", "nonsense"], 2, 2),
        (attach, &["detach", "nonsense"], 3, 3),
        (attach, &["keep", "nonsense"], 3, 3),
        (attach, &["up", "--tab", "/nowhere", "nonsense"], 1, 1),
        (attach, &["status", "--json"], 0, 1),
        (attach, &["status", "nonsense"], 3, 3),
        (attach, &["watch", "nonsense"], 3, 3),
        (attach, &["flush", "/nowhere"], 2, 2),
        (attach, &["probe", "/nowhere"], 2, 2),
    ];
    end_as_they_should(commands, Path::new("/nowhere"));
}

/// A server on a Unix socket with such streams, killed when dropped.
struct Odd(Child, #[expect(dead_code, reason = "held")] Vec<OwnedFd>);

impl Odd {
    fn start(args: &[&str], socket: &Path, out: Fate, err: Fate) -> Odd {
        let ((stdout, held_out), (stderr, held_err)) = (stream(out), stream(err));
        let child = Command::new(server_tool())
            .args(args)
            .arg("--unix")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("the server can be started");
        wait_until("the server to listen", || std::os::unix::net::UnixStream::connect(socket).is_ok());
        Odd(child, held_out.into_iter().chain(held_err).collect())
    }

    fn terminate(&mut self) -> Option<i32> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("it runs");
        tool::end_of(&mut self.0, PATIENCE, || false).and_then(|status| status.code())
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _may_be_reaped = self.0.wait();
    }
}

#[test]
fn a_server_serves_and_stops_whatever_its_outputs_are() {
    for fate in FATES {
        let disk = Disk::sparse(1 << 20);
        let socket = disk.dir().join("socket");
        let export = disk.path().to_str().expect("temporary paths are text");
        // Every request is logged, some megabytes in all: more than any pipe holds.
        let mut server = Odd::start(&["-v", "-v", "--workers", "1", export], &socket, fate, fate);
        let endpoint = Endpoint::Unix(socket);
        let mut client = Client::connect(&endpoint);
        for number in 0..5000 {
            assert_eq!(client.write(PLAIN, number % 256 * 4096, &[1; 4096]), WireError::OK, "{fate:?}");
        }
        // On the one worker.
        let mut other = Client::connect(&endpoint);
        assert_eq!(other.flush(), WireError::OK, "{fate:?}");
        drop((client, other));
        assert_eq!(server.terminate(), Some(0), "{fate:?}");
    }
}

#[test]
fn a_flood_of_failing_requests_is_one_line_that_names_the_export() {
    let failing = Disk::sparse(1 << 20);
    let bad = format!("bad={}", failing.path().display());
    let server = Server::builder().export("full=memory:1M").export(bad).unix().start();
    let _said = server.logged("listening");
    let before = server.log().lines().count();
    let mut client = Client::try_connect(server.endpoint(), "full").unwrap();
    // Memory cannot do it without writing zeroes: an ordinary answer.
    let fast = CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE;
    for _ in 0..5000 {
        assert_eq!(client.ask(CommandType::WRITE_ZEROES, fast, 0, 4096), WireError::ENOTSUP);
    }
    assert_eq!(server.log().lines().count(), before, "what a client may ask is no news");
    // Now the disk behind the other export is gone.
    File::options().write(true).open(failing.path()).unwrap().set_len(0).unwrap();
    let mut client = Client::try_connect(server.endpoint(), "bad").unwrap();
    for number in 0..5000 {
        assert!(client.read(number % 256 * 4096, 4096).is_err());
    }
    let exit = server.terminate();
    let failed: Vec<&str> = exit.log.lines().filter(|line| line.contains("request failed")).collect();
    assert!((1..=20).contains(&failed.len()), "{} lines: {failed:#?}", failed.len());
    assert!(failed.iter().all(|line| line.contains("bad")), "{failed:#?}");
    let counted: u64 =
        failed.iter().filter_map(|line| line.rsplit_once("more=")?.1.trim().parse::<u64>().ok()).sum();
    assert_eq!(counted, 4999, "what was not told was counted: {failed:#?}");
}

#[test]
fn the_journal_is_told_how_bad_a_line_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let found = log.metadata().unwrap();
    for (stream, due) in [
        (format!("{}:{}", found.st_dev(), found.st_ino()), true),
        (format!("{}:{}", found.st_dev(), found.st_ino() + 1), false),
    ] {
        let done = Command::new(server_tool())
            .args(["--unix", "/nowhere/socket", "memory:1M", "--max-connections", "2000000"])
            .env("JOURNAL_STREAM", stream)
            .stdout(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .status()
            .unwrap();
        assert_eq!(done.code(), Some(1));
        let said = fs::read_to_string(dir.path().join("log")).unwrap();
        log.set_len(0).unwrap();
        let warned = said.lines().find(|line| line.contains("there may be fewer descriptors"));
        assert_eq!(warned.expect("it warns").trim_start_matches('\0').starts_with("<4>"), due, "{said}");
    }
}

#[test]
fn less_is_logged_for_those_who_want_less() {
    let lines = |args: &[&str], environment: Option<&str>| {
        let mut words = vec!["env".to_owned()];
        words.extend(environment.map(|filter| format!("RUST_LOG={filter}")));
        let server = Server::builder().under(words).export("memory:1M").unix().args(args).start();
        assert_eq!(Client::connect(server.endpoint()).flush(), WireError::OK);
        server.terminate().log
    };
    assert!(lines(&[], None).contains("listening"));
    assert_eq!(lines(&["--quiet"], None), "");
    assert_eq!(lines(&[], Some("error")), "");
    assert!(lines(&[], Some("nbd_server=debug")).contains("transmission begins"));
    assert!(lines(&["-v"], Some("error")).contains("transmission begins"), "what was typed counts");
    assert!(lines(&[], Some("=/=")).contains("RUST_LOG is not understood"));
}
