//! Proves, against the running server: every thread of it is confined by default, it says so and can be told
//! otherwise; it serves as another user if it shall; and a reload that reaches for what it has given up
//! says what to do. What a confined process can no longer do is `nbd-server/tests/confinement.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::proto::WireError;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::tool;

/// A line of `/proc/PID/status`, of each of the server's threads.
fn of_threads(server: &Server, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it lives");
    let line = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim_start_matches(':').trim().to_owned())
    };
    let lines: Vec<String> = tasks.filter_map(|task| line(task.expect("it can be read"))).collect();
    assert!(lines.len() > 2, "a server has several threads");
    lines
}

#[test]
fn every_thread_is_confined_unless_told_otherwise() {
    let serve = |args: &[&str]| Server::builder().export("memory:1M").unix().args(args).start();
    for args in [&[][..], &["--sandbox", "required"]] {
        let server = serve(args);
        assert!(of_threads(&server, "Seccomp:").iter().all(|mode| mode == "2"), "{}", server.log());
        assert!(of_threads(&server, "NoNewPrivs:").iter().all(|mode| mode == "1"));
        let line = server.logged("confined: files and TCP: landlock");
        assert!(line.contains("system calls: seccomp"), "{line}");
    }
    let server = serve(&["--sandbox", "off"]);
    assert!(of_threads(&server, "Seccomp:").iter().all(|mode| mode == "0"));
    assert!(server.log().contains("confined: files and TCP: not wanted; system calls: not wanted"));
}

#[test]
fn another_user_serves_what_is_its_own_and_nothing_else() {
    if !Uid::effective().is_root() {
        return tool::skip("only root can become another user");
    }
    let nobody = User::from_name("nobody").unwrap().expect("every system has it");
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let serve = || Server::builder().export(disk.path()).args(&["--user", "nobody"]);
    let dir = disk.path().parent().expect("it is in a directory");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let refused = serve().refused();
    assert!(refused.log.contains("for writing: Permission denied"), "{refused:?}");

    std::os::unix::fs::chown(disk.path(), Some(nobody.uid.as_raw()), None).unwrap();
    let server = serve().start();
    let uid = nobody.uid.to_string();
    for ids in of_threads(&server, "Uid:") {
        assert!(ids.split('\t').all(|id| id == uid), "{ids}");
    }
    let groups = [nobody.gid.to_string(), String::new()];
    for ids in of_threads(&server, "Groups:") {
        assert!(groups.contains(&ids), "{ids}");
    }
    let mut client = Client::connect(server.endpoint());
    assert_eq!(client.write(FUA, 0, &[7; 4096]), WireError::OK, "{}", server.log());
    assert_eq!(client.read(0, 512), Ok(vec![7; 512]));
    assert_eq!(client.write(PLAIN, 512, &[8; 512]), WireError::OK);
    drop(client);
    assert_eq!(server.terminate().code, Some(0));

    let refused = Server::builder().export("memory:1M").args(&["--user", "who-is-this"]).refused();
    assert!(refused.log.contains("there is no user \"who-is-this\""), "{refused:?}");
}

#[test]
fn a_reload_serves_from_the_directories_that_were_kept() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (near, far) = (dir.path().join("near"), dir.path().join("far"));
    for (place, file) in [(&near, "a.img"), (&near, "b.img"), (&far, "c.img")] {
        fs::create_dir_all(place).unwrap();
        fs::write(place.join(file), vec![0; 1 << 20]).unwrap();
    }
    let config = dir.path().join("nbd.toml");
    let socket = dir.path().join("nbd.sock");
    let write = |served: &[&std::path::Path]| {
        let mut text = format!("unix = [{socket:?}]\n");
        for (number, path) in served.iter().enumerate() {
            text += &format!("[[export]]\nname = \"{number}\"\nserve = {path:?}\n");
        }
        fs::write(&config, text).unwrap();
    };
    let (a, b, c) = (near.join("a.img"), near.join("b.img"), far.join("c.img"));
    write(&[&a]);
    let server = Server::builder().config(&config, 1).start();
    write(&[&a, &b]);
    server.signal(Signal::SIGHUP);
    let _ = server.logged("added export=\"1\"");
    write(&[&a, &b, &c]);
    server.signal(Signal::SIGHUP);
    let line = server.logged("is not served");
    assert!(line.contains("c.img name its directory under `directories`, then restart"), "{line}");
    assert!(Client::try_connect(server.endpoint(), "1").is_ok(), "what was served still is");
}
