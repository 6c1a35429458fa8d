//! Proves `nbd-crash` and `nbd-server --record` with real clients and servers: a recorder changes nothing for those it
//! stands between, what was promised is found in what a killed server leaves, states are served as they were, and a
//! server that lies about FLUSH is found out while honest ones are not accused.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::crash::subjects::{SUBJECTS, between, killed, random_requests};
use tests::crash::{Serving, crash};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::tool;

fn path(directory: &TempDir, name: &str) -> String {
    directory.path().join(name).to_str().expect("temporary names are text").to_owned()
}

fn explored(args: &[&str], code: i32) -> String {
    let done = crash(&[&["explore"], args].concat());
    assert_eq!(done.status.code(), Some(code), "{}{}", done.stdout, done.stderr);
    done.stdout
}

#[test]
fn a_recorder_changes_nothing_for_those_it_is_between() {
    let (Some(nbdcopy), Some(qemu_io)) =
        (tool::find("nbdcopy", "libnbd-bin"), tool::find("qemu-io", "qemu-utils"))
    else {
        return;
    };
    let directory = TempDir::new().unwrap();
    let disk = Disk::sparse(4 << 20);
    let server = Server::builder().export(disk.spec()).unix().start();
    let (log, socket, marks) =
        (path(&directory, "log"), path(&directory, "front"), path(&directory, "marks"));
    let words =
        ["record", "--to", &server.endpoint().uri(""), "--listen", &socket, "--log", &log, "--marks", &marks];
    let recorder = Serving::start(&words);

    let image = path(&directory, "image");
    let content = pattern(9, 4 << 20);
    fs::write(&image, &content).unwrap();
    tool::succeed(&nbdcopy, &["--flush", &image, recorder.uri()]);
    let mark = crash(&["mark", "--to", &marks, "copied"]);
    assert!(mark.status.success() && mark.stdout.trim().parse::<u64>().is_ok(), "{}", mark.stderr);
    let commands =
        ["-f", "raw", "-c", "write -P 7 -f 4096 8192", "-c", "write -z 65536 4096", recorder.uri()];
    tool::succeed(&qemu_io, &commands);
    let back = path(&directory, "back");
    tool::succeed(&nbdcopy, &[recorder.uri(), &back]);
    assert!(recorder.terminate().success());
    assert_eq!(server.terminate().code, Some(0));

    let mut expected = content;
    expected[4096..12_288].fill(7);
    expected[65_536..69_632].fill(0);
    assert!(fs::read(&back).unwrap() == expected && disk.content() == expected);
    let shown = crash(&["show", &log]).stdout;
    for line in
        ["mark: copied", "WRITE 8192 bytes at 4096 FUA", "ZERO 4096 bytes at 65536", "FLUSH", "answer to"]
    {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    let json = crash(&["show", "--json", &log]).stdout;
    assert!(json.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{json}");
    let kept = crash(&["check", &log, "--image", disk.path().to_str().unwrap()]);
    assert!(kept.status.success(), "{}", kept.stdout);
    expected[4096] ^= 1;
    fs::write(&image, &expected).unwrap();
    let broken = crash(&["check", &log, "--image", &image]);
    assert_eq!(broken.status.code(), Some(1), "{}", broken.stdout);
    assert!(broken.stdout.contains("bytes 4096 to 4608"), "{}", broken.stdout);
    explored(&[&log, "--budget", "200"], 0);
    explored(&[&log, "--contract", "no-fua"], 1);
}

#[test]
fn what_a_kill_leaves_keeps_its_promises() {
    for mode in ["writethrough", "writeback", "early-ack"] {
        let left = killed(mode, 3);
        assert!(left.status.success(), "{mode}: {}{}", left.stdout, left.stderr);
        assert!(left.stderr.contains("the recording has no end"), "{}", left.stderr);
    }
}

/// A recording of three writes of 4 KiB: ones at 0; twos at 0, with FUA; threes at 4096. qemu-io ends with a FLUSH each
/// time, whatever it is told about caches.
fn three_writes(directory: &TempDir, qemu_io: &Path) -> String {
    let log = path(directory, "log");
    let server = Server::builder().export("disk=memory:1M").args(&["--record", &log]).unix().start();
    let uri = server.endpoint().uri("disk");
    for command in ["write -P 1 0 4096", "write -P 2 -f 0 4096", "write -P 3 4096 4096"] {
        tool::succeed(qemu_io, &["-f", "raw", "-c", command, &uri]);
    }
    assert_eq!(server.terminate().code, Some(0));
    log
}

/// Sequence numbers of the writes in a recording.
fn writes(log: &str) -> Vec<u64> {
    let json = crash(&["show", "--json", log]).stdout;
    let lines = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON lines"));
    lines.filter(|line| line["request"] == "WRITE").filter_map(|line| line["seq"].as_u64()).collect()
}

#[test]
fn a_recording_of_a_server_has_an_end_and_a_report() {
    let Some(qemu_io) = tool::find("qemu-io", "qemu-utils") else { return };
    let directory = TempDir::new().unwrap();
    let (log, report) = (three_writes(&directory, &qemu_io), path(&directory, "report.html"));
    let shown = crash(&["show", &log]);
    assert!(shown.stderr.is_empty(), "{}", shown.stderr);
    explored(&[&log, "--contract", "unsafe", "--report", &report], 1);
    let html = fs::read_to_string(&report).unwrap();
    assert!(html.contains("<svg") && html.contains("It is enough to lose"), "{html}");
    let json = html.split("id=outcome>").nth(1).unwrap().split("</script>").next().unwrap();
    let outcome: serde_json::Value = serde_json::from_str(json).unwrap();
    assert!(outcome["violations"].as_array().is_some_and(|it| !it.is_empty()), "{outcome}");
}

#[test]
fn a_server_writes_down_what_it_was_asked() {
    let Some(qemu_io) = tool::find("qemu-io", "qemu-utils") else { return };
    let directory = TempDir::new().unwrap();
    let log = path(&directory, "log");
    let server = Server::builder().export("memory:1M").args(&["--record", &log]).unix().start();
    let asked =
        ["-c", "write -P 1 -f 0 4096", "-c", "write -z 8192 4096", "-c", "discard 16384 8192", "-c", "flush"];
    let uri = server.endpoint().uri("");
    tool::succeed(
        &qemu_io,
        &[&["-f", "raw", "-t", "writeback", "-d", "unmap"], &asked[..], &[&uri]].concat(),
    );
    assert_eq!(server.terminate().code, Some(0));
    let shown = crash(&["show", &log]).stdout;
    // Without time, sequence number and connection.
    let words = |line: &str| line.split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
    let told: Vec<String> = shown.lines().map(words).collect();
    let due =
        ["opened", "WRITE 4096 bytes at 0 FUA", "answer to 2", "ZERO 4096 bytes at 8192", "answer to 4"];
    assert_eq!(told[..5], due, "{shown}");
    assert_eq!(told[5..9], ["TRIM 8192 bytes at 16384", "answer to 6", "FLUSH", "answer to 8"], "{shown}");
    assert_eq!(told.last().map(String::as_str), Some("closed"), "{shown}");
}

#[test]
fn what_is_left_is_compared_with_what_was_promised() {
    let Some(qemu_io) = tool::find("qemu-io", "qemu-utils") else { return };
    let directory = TempDir::new().unwrap();
    let (log, left) = (three_writes(&directory, &qemu_io), path(&directory, "left"));
    let checked = |places: &[(usize, u8)]| {
        let mut image = vec![0; 1 << 20];
        places.iter().for_each(|(at, byte)| image[*at..at + 4096].fill(*byte));
        fs::write(&left, image).unwrap();
        crash(&["check", &log, "--image", &left]).status.code()
    };
    assert_eq!(checked(&[(0, 2), (4096, 3)]), Some(0));
    assert_eq!(checked(&[(0, 2)]), Some(1), "what was flushed is gone");
    assert_eq!(checked(&[(0, 1), (4096, 3)]), Some(1), "what had FUA is gone");
    assert_eq!(checked(&[(0, 2), (4096, 3), (65_536, 9)]), Some(1), "nobody wrote there");
}

#[test]
fn states_are_served_as_they_were() {
    let (Some(nbdcopy), Some(qemu_io)) =
        (tool::find("nbdcopy", "libnbd-bin"), tool::find("qemu-io", "qemu-utils"))
    else {
        return;
    };
    let directory = TempDir::new().unwrap();
    let log = three_writes(&directory, &qemu_io);
    let writes = writes(&log);
    let content = |state: &[&str]| {
        let (socket, copy) = (path(&directory, "state"), path(&directory, "copy"));
        let _fresh = fs::remove_file(&copy);
        let served = Serving::start(&[&["serve", &log, "--listen", &socket], state].concat());
        tool::succeed(&nbdcopy, &[served.uri(), &copy]);
        // It can be written to, for repair tools and mounts.
        let commands = ["-f", "raw", "-c", "write -P 9 0 512", "-c", "read -P 9 0 512", served.uri()];
        tool::succeed(&qemu_io, &commands);
        let copied = fs::read(&copy).unwrap();
        (copied.len(), copied[0], copied[4096])
    };
    let [first, _, last] = writes[..] else { panic!("{writes:?}") };
    assert_eq!(content(&["--state", &format!("nbd@{last}:none")]), (1 << 20, 2, 0));
    assert_eq!(content(&["--state", &format!("nbd@{last}:all")]), (1 << 20, 2, 3));
    assert_eq!(content(&["--at", &last.to_string()]), (1 << 20, 2, 3));
    assert_eq!(content(&["--state", &format!("unsafe@{last}:{first}")]), (1 << 20, 1, 0));
}

#[test]
fn a_server_that_ignores_flush_and_fua_is_found_out_and_an_honest_one_is_not() {
    for subject in &SUBJECTS {
        let (name, package) = subject.program;
        let Some(program) = tool::find(name, package) else { return };
        let explored = between(&program, subject, 200, 3, &["--violations", "1", "--budget", "2000"]);
        let code = i32::from(!subject.is_honest);
        assert_eq!(
            explored.status.code(),
            Some(code),
            "{}: {}{}",
            subject.name,
            explored.stdout,
            explored.stderr
        );
        let guilt = explored.stdout.contains("covers it") || explored.stdout.contains("it had FUA");
        assert_eq!(guilt, !subject.is_honest, "{}", explored.stdout);
    }
}

#[test]
fn a_command_can_be_the_judge() {
    let directory = TempDir::new().unwrap();
    let log = path(&directory, "log");
    let server = Server::builder().export("memory:1M").args(&["--record", &log]).unix().start();
    let requests = random_requests(&directory, 30, 3);
    let sent = crash(&["workload", &requests, "--nbd", &server.endpoint().uri("")]);
    assert!(sent.status.success(), "{}", sent.stderr);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code, Some(0));
    let judge =
        |command: &str| crash(&["explore", &log, "--budget", "5", "--oracle", &format!("cmd:{command}")]);
    let asks = r#"case "$NBD_CRASH_URI" in nbd+unix:*) test -f "$NBD_CRASH_MARKS";; *) exit 2;; esac"#;
    assert_eq!(judge(asks).status.code(), Some(0));
    let found = judge("echo the reason; exit 1");
    assert!(found.status.code() == Some(1) && found.stdout.contains("the reason"), "{}", found.stdout);
    let failed = judge("echo no such program >&2; exit 127");
    assert!(
        failed.status.code() == Some(2) && failed.stderr.contains("no such program"),
        "{}",
        failed.stderr
    );
}

#[test]
fn mistakes_are_told_in_a_sentence() {
    let directory = TempDir::new().unwrap();
    let (there, socket) = (path(&directory, "there"), path(&directory, "socket"));
    fs::write(&there, "no recording").unwrap();
    let said = |args: &[&str], what: &str| {
        let done = crash(args);
        assert_eq!(done.status.code(), Some(2), "{args:?}");
        assert!(done.stderr.contains(what), "{args:?}: {}", done.stderr);
    };
    said(&["explore", &there], "this is no recording");
    said(&["explore", "/nowhere"], "No such file");
    said(&["explore", &there, "--budget", "soon"], "no budget");
    said(&["explore", &there, "--unit", "100"], "no multiple of 512");
    said(&["serve", &there], "--state");
    let (log, server) = (path(&directory, "unmarked"), Server::builder().export("memory:1M").unix());
    assert_eq!(server.args(&["--record", &log]).start().terminate().code, Some(0));
    said(&["explore", &log, "--oracle", "ext4"], "no mark of a workload");
    said(&["explore", &log, "--oracle", "ext5"], "there is no such oracle");
    said(&["explore", &log, "--oracle", "cmd:true", "--front", &log], "by the raw oracle only");
    said(&["serve", &log, "--state", "nbd@7"], "names no state");
    said(&["import", &there, &socket], "no log of dm-log-writes");
    said(&["mark", "--to", &socket, "x"], "cannot reach");
    let record = |to: &str, what| {
        said(&["record", "--to", to, "--listen", &socket, "--log", &path(&directory, "new")], what);
        let _next_listens_there = fs::remove_file(&socket);
    };
    record("nbds://localhost", "it speaks no TLS");
    record("http://localhost", "no NBD scheme");
    record("nbd+unix:///?socket=/nowhere", "cannot reach /nowhere");

    let refused = |exports: &[&str], words: &[&str], what: &str| {
        let mut server = Server::builder().args(words).unix();
        for export in exports {
            server = server.export(*export);
        }
        let exit = server.refused();
        assert!(exit.code == Some(1) && exit.log.contains(what), "{}", exit.log);
    };
    refused(&["a=memory:1M", "b=memory:1M"], &["--record", &path(&directory, "new")], "of one export");
    refused(&["memory:1M"], &["--record", &there], "cannot record to");
    refused(&["memory:1M"], &["--record", "/nowhere/log"], "cannot record to");
    assert!(Path::new(&there).metadata().unwrap().len() == 12, "what was there is as it was");
}
