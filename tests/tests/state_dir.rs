//! Proves that a state directory costs no client a write: one that is full, one that cannot be written, and one that
//! keeps records of exports with names that are alike. What cannot be kept is an epoch, and then the next server has
//! another one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use common::proto::{CommandType, WireError};
use tempfile::TempDir;
use tests::client::{Client, FUA, PLAIN};
use tests::mount::{self, Mount};
use tests::operator::Operator;
use tests::server::Server;

const BLOCK: usize = 4096;
/// After 5 seconds without a write a server puts on record that everything is stable.
const REST: Duration = Duration::from_secs(6);
/// Bytes of a state directory that will be full.
const SMALL: u64 = 256 << 10;

/// A file system without extended attributes, and another one for the records.
struct Scene {
    _files: Mount,
    state: Mount,
    dir: TempDir,
}

impl Scene {
    fn new() -> Option<Scene> {
        if !mount::can_mount() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a scene can be made");
        let files = Mount::ramfs(&dir.path().join("files")).expect("a scene can be made");
        let state = Mount::tmpfs(&dir.path().join("state"), SMALL).expect("a scene can be made");
        Some(Scene { _files: files, state, dir })
    }

    /// A file of 1 MiB.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join("files").join(name);
        if !path.exists() {
            File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("a scene can be made");
        }
        path
    }

    fn start(&self, mode: &str) -> (Server, Operator, Client) {
        let operator = Operator::at(self.dir.path().join("admin"));
        let state = self.state.path().to_str().expect("temporary paths are text");
        let args = ["--state-dir", state, "--durability", mode, "--dirty-age", "60"];
        let builder = Server::builder().export(self.file("disk.img")).unix().args(&args);
        let server = operator.of(builder).start();
        let client = Client::connect(server.endpoint());
        (server, operator, client)
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let file = File::create(self.state.path().join("filler")).expect("a scene can be made");
        let mut at = 0;
        while file.write_all_at(&[1; BLOCK], at).is_ok() {
            at += BLOCK as u64;
        }
        assert!(file.write_all_at(&[1; BLOCK], at).is_err(), "it is full");
    }
}

/// Whatever clients do after a start, a rest and a FLUSH succeeds.
fn assert_writable(client: &mut Client, when: &str) {
    for flags in [PLAIN, FUA] {
        assert_eq!(client.write(flags, 0, &[1; BLOCK]), WireError::OK, "{when}: WRITE {flags:?}");
        assert_eq!(
            client.ask(CommandType::WRITE_ZEROES, flags, 0, 4096),
            WireError::OK,
            "{when}: WRITE_ZEROES {flags:?}"
        );
    }
    assert_eq!(client.flush(), WireError::OK, "{when}: FLUSH");
}

#[test]
fn a_state_directory_that_fills_up_fails_no_write() {
    let modes = ["writeback", "early-ack"];
    let scenes: Vec<_> = modes.into_iter().filter_map(|mode| Some((mode, Scene::new()?))).collect();
    let begin = |(mode, scene): &(&str, Scene)| {
        let (server, operator, mut client) = scene.start(mode);
        let epoch = operator.epoch();
        scene.fill();
        assert_writable(&mut client, "full");
        (server, client, epoch)
    };
    let begun: Vec<_> = scenes.iter().map(begin).collect();
    thread::sleep(REST);
    for ((mode, scene), (server, mut client, epoch)) in scenes.iter().zip(begun) {
        assert_writable(&mut client, "after a rest");
        assert_eq!(server.terminate().code, Some(0), "{mode}");
        // The record has its place since there was room.
        let (_server, operator, _client) = scene.start(mode);
        assert_eq!(operator.epoch(), epoch, "{mode}: nothing was lost");
    }
}

#[test]
fn a_state_directory_that_is_full_from_the_first_fails_no_write_and_keeps_no_epoch() {
    let Some(scene) = Scene::new() else { return };
    scene.fill();
    assert_keeps_nothing(&scene);
}

#[test]
fn a_state_directory_that_cannot_be_written_fails_no_write_and_keeps_no_epoch() {
    let Some(scene) = Scene::new() else { return };
    scene.state.make_read_only().unwrap();
    assert_keeps_nothing(&scene);
}

#[test]
fn a_record_that_can_only_be_read_is_not_trusted_by_the_server_after_the_next() {
    let Some(scene) = Scene::new() else { return };
    let (server, _operator, mut client) = scene.start("early-ack");
    assert_writable(&mut client, "at first");
    assert_eq!(server.terminate().code, Some(0));
    assert!(fs::read_dir(scene.state.path()).unwrap().next().is_some(), "there is a record");
    scene.state.make_read_only().unwrap();
    assert_keeps_nothing(&scene);
}

#[test]
fn a_record_that_is_no_file_stops_no_start() {
    let Some(scene) = Scene::new() else { return };
    let (server, operator, mut client) = scene.start("writeback");
    let epoch = operator.epoch();
    assert_writable(&mut client, "at first");
    assert_eq!(server.terminate().code, Some(0));
    for record in fs::read_dir(scene.state.path()).unwrap() {
        let path = record.unwrap().path();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    let (_server, operator, mut client) = scene.start("writeback");
    assert_ne!(operator.epoch(), epoch, "nothing is known of the server before");
    assert_writable(&mut client, "after that");
}

/// The server serves, and if it is killed with data of its own, nobody takes its successor for it.
fn assert_keeps_nothing(scene: &Scene) {
    let (server, operator, mut client) = scene.start("early-ack");
    let epoch = operator.epoch();
    assert_writable(&mut client, "without a record");
    assert_eq!(client.write(PLAIN, 0, &[2; BLOCK]), WireError::OK);
    server.kill();
    let (_server, operator, mut client) = scene.start("early-ack");
    assert_ne!(operator.epoch(), epoch, "what early-ack held is lost");
    assert_writable(&mut client, "after that");
}

#[test]
fn names_that_are_alike_have_records_of_their_own() {
    let Some(scene) = Scene::new() else { return };
    // What a name of a temporary file could be made of.
    let names = ["vm.root", "vm.swap", "vm.new", "vm", "vm.tmp"];
    let mut kept: Vec<Option<String>> = vec![None; names.len()];
    for round in 0..10 {
        let mut builder = Server::builder().unix();
        for name in names {
            builder = builder.export(format!("{name}={}", scene.file(name).display()));
        }
        let state = scene.state.path().to_str().expect("temporary paths are text");
        let server = builder.args(&["--state-dir", state]).start();
        let clients = names.map(|name| Client::try_connect(server.endpoint(), name).unwrap());
        for (client, kept) in clients.iter().zip(&mut kept) {
            let told = client.export.description.clone().expect("the server describes its exports");
            assert_eq!(*kept.get_or_insert_with(|| told.clone()), told, "round {round}: nothing was lost");
        }
        let mut clients = clients;
        let data = [round; BLOCK];
        // The first write after a start changes the record: all of them at once.
        for client in &mut clients {
            client.send_write(PLAIN, 0, &data);
        }
        for (client, name) in clients.iter_mut().zip(names) {
            assert_eq!(client.reply().error, WireError::OK, "round {round}: the write to {name}");
        }
        drop(clients);
        assert_eq!(server.terminate().code, Some(0));
    }
    let mut epochs = kept;
    epochs.sort();
    epochs.dedup();
    assert_eq!(epochs.len(), names.len(), "each has an epoch of its own");
}
