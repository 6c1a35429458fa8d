//! Proves that an image has one writer at a time: of two servers of ours, of ours and QEMU, in either order, the second
//! is refused and told who the first is; that readers of ours let nobody write, and share; that QEMU's readers, which
//! forbid nothing, are let in; and that a lock outlives nobody who had it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::proto::WireError;
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::server::Server;
use tests::tool::{self, Done};
use tests::wait_until;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// A process that is ended at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _may_be_reaped = self.0.wait();
    }
}

/// QEMU's server of a disk, once it listens.
fn qemu_nbd(tool: &Path, disk: &Disk, words: &[&str]) -> Running {
    let socket = disk.dir().join("qemu.sock");
    let server = Command::new(tool)
        .args(["--format=raw", "--persistent", "--socket", text(&socket)])
        .args(words)
        .arg(disk.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-nbd can be started");
    wait_until("qemu-nbd to listen", || socket.exists());
    Running(server)
}

/// What qemu-io does with a disk.
fn qemu_io(tool: &Path, disk: &Disk, words: &[&str]) -> Done {
    let mut all = vec!["-f", "raw"];
    all.extend(words);
    all.push(text(disk.path()));
    tool::run(tool, &all)
}

#[test]
fn what_ours_writes_nobody_else_writes() {
    let Some(qemu) = tool::find("qemu-io", "qemu-utils") else { return };
    let disk = Disk::sparse(1 << 20);
    let server = Server::of(disk.spec());
    let write = qemu_io(&qemu, &disk, &["-c", "write 0 4k"]);
    assert!(!write.status.success() && write.stderr.contains("Failed to get"), "{write:?}");
    let read = qemu_io(&qemu, &disk, &["-U", "-r", "-c", "read 0 4k"]);
    assert!(read.status.success(), "a reader who expects nothing is let in: {read:?}");
    assert_eq!(Client::connect(server.endpoint()).write(FUA, 0, &[1; 512]), WireError::OK);
    server.kill();
    assert!(qemu_io(&qemu, &disk, &["-c", "write 0 4k"]).status.success(), "a killed server holds nothing");
}

#[test]
fn what_ours_reads_others_may_read() {
    let Some(qemu) = tool::find("qemu-io", "qemu-utils") else { return };
    let disk = Disk::sparse(1 << 20);
    let reader = || Server::builder().export(disk.spec()).args(&["--read-only"]).unix().start();
    let _both = (reader(), reader());
    assert!(qemu_io(&qemu, &disk, &["-r", "-c", "read 0 4k"]).status.success());
    let write = qemu_io(&qemu, &disk, &["-c", "write 0 4k"]);
    assert!(!write.status.success() && write.stderr.contains("write\" lock"), "{write:?}");
}

#[test]
fn what_qemu_has_open_ours_does_not_write() {
    let Some(qemu) = tool::find("qemu-nbd", "qemu-utils") else { return };
    let disk = Disk::sparse(1 << 20);
    let (ours, read_only) = (|| Server::builder().export(disk.spec()).unix(), ["--read-only"]);
    let writer = qemu_nbd(&qemu, &disk, &[]);
    let named = format!("process {} (qemu-nbd)", writer.0.id());
    let refused = ours().refused();
    assert!(refused.log.contains(&named) && refused.code == Some(1), "{refused:?}");
    let refused = ours().args(&read_only).refused();
    assert!(refused.log.contains(&named), "{refused:?}");
    drop(writer);
    std::fs::remove_file(disk.dir().join("qemu.sock")).ok();
    let reader = qemu_nbd(&qemu, &disk, &["--read-only"]);
    let both = ours().args(&read_only).start();
    let refused = ours().refused();
    assert!(refused.log.contains(&format!("process {} (nbd-server)", both.pid())), "{refused:?}");
    drop(both);
    // It forbids nothing, as to QEMU's own writers.
    let _server = ours().start();
    drop(reader);
}

#[test]
fn a_server_serves_what_it_writes_to_readers_under_another_name() {
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let file = disk.dir().join("nbd.toml");
    let socket = disk.dir().join("nbd.sock");
    let [writer, reader] = ["", "\nread-only = true"].map(|how| {
        let name = if how.is_empty() { "writer" } else { "reader" };
        format!("[[export]]\nname = {name:?}\nserve = {:?}{how}\n", disk.path())
    });
    let write = |exports: &str| {
        std::fs::write(&file, format!("unix = [{socket:?}]\n{exports}")).expect("it can be written");
    };
    write(&(reader.clone() + &writer));
    let server = Server::builder().config(&file, 1).start();
    let connect = |name| Client::try_connect(server.endpoint(), name).expect("it is served");
    let (mut writing, mut reading) = (connect("writer"), connect("reader"));
    assert_eq!(writing.write(PLAIN, 0, &[7; 512]), WireError::OK);
    assert_eq!(reading.read(0, 512), Ok(vec![7; 512]));
    assert_eq!(reading.write(PLAIN, 0, &[8; 512]), WireError::EPERM);
    // The reader keeps the lock when the writer goes, and shares it when one comes again.
    write(&reader);
    server.signal(nix::sys::signal::Signal::SIGHUP);
    let _line = server.logged("removed export=\"writer\"");
    let refused = Server::builder().export(disk.spec()).unix().refused();
    assert!(refused.log.contains(&format!("process {} (nbd-server)", server.pid())), "{refused:?}");
    write(&(reader + &writer));
    server.signal(nix::sys::signal::Signal::SIGHUP);
    let _line = server.logged("added export=\"writer\"");
    assert_eq!(connect("writer").write(FUA, 512, &[9; 512]), WireError::OK);
    assert_eq!(reading.read(512, 512), Ok(vec![9; 512]));
}
