//! Proves, against the running server: a configuration file says all that flags say and more; it can be
//! checked; SIGHUP adds, removes and changes exports while clients of the others notice nothing; a bad
//! file changes nothing and its line is named; a bad export stops only itself; and an export is there only for
//! those it admits, from the moment on at which that is said.

use std::fs;
use std::path::{Path, PathBuf};

use common::handshake::Listed;
use common::option::decode_listed;
use common::proto::{CommandType, OptionType, ReplyType, WireError};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::client::{Client, FUA, PLAIN};
use tests::disk::{Disk, pattern};
use tests::haggle::Haggle;
use tests::operator::Operator;
use tests::pki::Authority;
use tests::server::{Endpoint, Server, server_tool};
use tests::{tool, wait_for, wait_until};

/// A configuration file in a directory of its own.
struct File {
    dir: TempDir,
}

impl File {
    fn of(exports: &str) -> File {
        let file = File { dir: tempfile::tempdir().expect("a temporary directory can be made") };
        file.write(exports);
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("nbd.toml")
    }

    /// Says where to listen, and then this.
    fn write(&self, exports: &str) {
        let socket = self.dir.path().join("nbd.sock");
        // The disks that reloads bring are each in a directory of their own.
        let disks = std::env::temp_dir();
        let text =
            format!("listen = [\"127.0.0.1:0\"]\nunix = [{socket:?}]\ndirectories = [{disks:?}]\n{exports}");
        fs::write(self.path(), text).expect("it can be written");
    }

    fn serve(&self) -> Server {
        Server::builder().config(&self.path(), 2).start()
    }
}

/// Sends SIGHUP and waits until the log says `what` once more.
fn reload(server: &Server, what: &str) {
    let said = || server.log().matches(what).count();
    let before = said();
    server.signal(Signal::SIGHUP);
    wait_until(what, || said() > before);
}

/// The exports that are listed at an endpoint.
fn listed(endpoint: &Endpoint) -> Vec<Listed> {
    let (pieces, reply) = Haggle::modern(endpoint).ask(OptionType::LIST, b"");
    assert_eq!(reply, ReplyType::ACK);
    pieces.iter().map(|piece| decode_listed(piece).expect("an export")).collect()
}

fn names(endpoint: &Endpoint) -> Vec<String> {
    listed(endpoint).into_iter().map(|it| it.name).collect()
}

fn export(name: &str, serve: &str, more: &str) -> String {
    format!("[[export]]\nname = {name:?}\nserve = {serve:?}\n{more}\n")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn a_file_says_what_is_served_and_how() {
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let file = File::of(
        &(export("a", text(disk.path()), "description = \"the first\"\nread-only = true")
            + &export("b", "memory:1M", "durability = \"early-ack\"")),
    );
    let server = file.serve();
    for endpoint in server.endpoints() {
        let told: Vec<(String, String)> =
            listed(endpoint).into_iter().map(|it| (it.name, it.description.unwrap_or_default())).collect();
        assert_eq!(told[0], ("a".into(), "durability=writeback; the first".into()));
        assert!(told[1].1.starts_with("durability=early-ack epoch="), "{told:?}");
        let mut reader = Client::try_connect(endpoint, "a").expect("it is served");
        assert_eq!(reader.read(0, 4096), Ok(pattern(1, 4096)));
        assert_eq!(reader.write(PLAIN, 0, &[1; 512]), WireError::EPERM);
    }
    assert_eq!(server.terminate().code, Some(0));
}

#[test]
fn the_beginning_of_a_file_is_served_and_no_more() {
    let disk = Disk::holding(&pattern(1, 1 << 20));
    let file = File::of(&export("a", text(disk.path()), "size = \"256K\""));
    let server = file.serve();
    let mut client = Client::try_connect(server.endpoint(), "a").expect("it is served");
    assert_eq!(client.export.size, 256 << 10);
    assert_eq!(client.read(0, 256 << 10), Ok(pattern(1, 256 << 10)));
    assert_eq!(client.write(FUA, (256 << 10) - 512, &[7; 512]), WireError::OK);
    assert_eq!(client.write(PLAIN, 256 << 10, &[8; 512]), WireError::ENOSPC);
    assert_eq!(client.read(256 << 10, 512), Err(WireError::EINVAL));
    assert_eq!(disk.content()[256 << 10..], pattern(1, 1 << 20)[256 << 10..]);
    drop((client, server));
    file.write(&export("a", text(disk.path()), "size = \"2M\""));
    let refused = Server::builder().config(&file.path(), 2).refused();
    assert!(refused.log.contains("fewer than the 2097152 that are to be served"), "{refused:?}");
}

#[test]
fn a_file_is_served_twice_only_if_one_export_is_read_only() {
    let disk = Disk::sparse(1 << 20);
    let both = |one: &str, other: &str| {
        File::of(&(export("a", text(disk.path()), one) + &export("b", text(disk.path()), other)))
    };
    let file = both("", "");
    let check = |file: &File| tool::run(server_tool(), &["check-config", text(&file.path())]);
    let done = check(&file);
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains("is served as \"a\" already"), "{done:?}");
    let refused = Server::builder().config(&file.path(), 2).refused();
    assert!(refused.log.contains("is served as \"a\" already"), "{refused:?}");
    assert!(check(&both("read-only = true", "")).status.success());
    assert!(check(&both("read-only = true", "read-only = true")).status.success());
}

#[test]
fn files_are_checked_while_a_server_runs_by_them() {
    let disk = Disk::sparse(1 << 20);
    let file = File::of(&export("a", text(disk.path()), ""));
    let _server = file.serve();
    let done = tool::run(server_tool(), &["check-config", text(&file.path())]);
    assert!(done.status.success() && done.stdout.contains("fine, with 1 export"), "{done:?}");
    for (bad, complaint) in [
        (export("a", "/nowhere", ""), "/nowhere"),
        (export("a", "memory:7", ""), "multiple of 512"),
        (export("a", "memory:1M", "colour = \"red\""), "line 7: unknown field `colour`"),
        (export("a", "memory:1M", "") + &export("a", "memory:2M", ""), "line 8: export \"a\": two exports"),
        (
            "[tls]\ncert = \"/nowhere\"\nkey = \"/nowhere\"\n".to_owned() + &export("a", "memory:1M", ""),
            "/nowhere",
        ),
    ] {
        file.write(&bad);
        let done = tool::run(server_tool(), &["check-config", text(&file.path())]);
        assert!(!done.status.success() && done.stderr.contains(complaint), "{complaint}: {done:?}");
    }
    let both = Server::builder().args(&["--config", text(&file.path())]).export("memory:1M").refused();
    assert_ne!(both.code, Some(0));
}

#[test]
fn a_reload_adds_and_removes_while_others_notice_nothing() {
    let (stays, goes, comes) = (Disk::sparse(1 << 20), Disk::sparse(1 << 20), Disk::sparse(1 << 20));
    let [stays_at, goes_at, comes_at] = [&stays, &goes, &comes].map(|disk| text(disk.path()).to_owned());
    let file = File::of(&(export("stays", &stays_at, "") + &export("goes", &goes_at, "")));
    let server = file.serve();
    let connect = |name| Client::try_connect(server.endpoint(), name).expect("it is served");
    let (mut staying, mut leaving, other) = (connect("stays"), connect("goes"), Disk::sparse(512));
    assert_eq!(leaving.write(PLAIN, 0, &[7; 512]), WireError::OK);
    assert_eq!(staying.write(PLAIN, 0, &[8; 512]), WireError::OK);

    file.write(&(export("stays", &stays_at, "") + &export("comes", &comes_at, "")));
    reload(&server, "removed export=\"goes\"");
    assert_eq!(names(server.endpoint()), ["comes", "stays"]);
    assert_eq!(leaving.socket.until_closed(), b"", "its client is sent away");
    assert_eq!(goes.content()[..512], [7; 512], "with all that it wrote");
    assert_eq!(staying.read(0, 512), Ok(vec![8; 512]), "the same connection goes on");
    assert_eq!(staying.write(FUA, 512, &[9; 512]), WireError::OK);
    assert_eq!(connect("comes").write(FUA, 0, &[5; 512]), WireError::OK);
    assert_eq!(comes.content()[..512], [5; 512]);
    // What was removed is let go of: another server can have it.
    let heir = Server::builder().export(goes.spec()).export({
        let mut spec = std::ffi::OsString::from("other=");
        spec.push(other.spec());
        spec
    });
    assert_eq!(Client::connect(heir.unix().start().endpoint()).read(0, 512), Ok(vec![7; 512]));
    let exit = server.terminate();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

/// Has the server hear an operator beside a disk.
fn heard(disk: &Disk) -> String {
    format!("admin = {:?}\n", Operator::beside(disk).socket())
}

/// A file of an export that goes, with a time for its clients, and one that stays.
fn going(seconds: &str, goes: &Disk) -> (File, String) {
    let stays = format!("shutdown-timeout = {seconds}\n") + &heard(goes) + &export("stays", "memory:1M", "");
    let goes = export("goes", text(goes.path()), "durability = \"early-ack\"");
    (File::of(&(stays.clone() + &goes)), stays)
}

#[test]
fn a_removed_export_lives_until_its_last_client_has_its_replies() {
    let goes = Disk::sparse(64 << 20);
    let (file, without) = going("600", &goes);
    let (operator, server) = (Operator::beside(&goes), file.serve());
    let mut client = Client::try_connect(&server.endpoints()[1], "goes").expect("it is served");
    // More replies than a socket holds, and then a write that only the server's memory holds.
    let reads = (0..8).map(|n| client.send(CommandType::READ, PLAIN, n << 20, 1 << 20)).count();
    client.send_write(PLAIN, 0, &[7; 512]);
    file.write(&without);
    reload(&server, "takes no more clients export=\"goes\"");
    let listed = operator.order(&["list"]);
    assert!(listed.contains("goes: early-ack, 67108864 bytes, ending: it takes no more clients"), "{listed}");
    assert!(!server.log().contains("removed export=\"goes\""), "{}", server.log());
    for _ in 0..=reads {
        assert_eq!(client.reply().error, WireError::OK);
    }
    assert_eq!(client.socket.until_closed(), b"");
    let _line = server.logged("removed export=\"goes\"");
    assert_eq!(goes.content()[..512], [7; 512]);
    assert!(!operator.order(&["list"]).contains("goes"));
}

#[test]
fn a_removed_export_lets_go_of_its_file_though_a_client_does_not_read() {
    let goes = Disk::sparse(64 << 20);
    let (file, without) = going("0.1", &goes);
    let server = file.serve();
    let mut client = Client::try_connect(&server.endpoints()[1], "goes").expect("it is served");
    client.send_write(PLAIN, 0, &[7; 512]);
    for n in 0..8 {
        client.send(CommandType::READ, PLAIN, n << 20, 1 << 20);
    }
    file.write(&without);
    reload(&server, "removed export=\"goes\"");
    assert!(server.log().contains("clients have not fetched their last replies in time"), "{}", server.log());
    assert_eq!(goes.content()[..512], [7; 512], "what it wrote is not lost");
    let heir = Server::of(goes.spec());
    assert_eq!(Client::connect(heir.endpoint()).read(0, 512), Ok(vec![7; 512]));
}

#[test]
fn a_reload_changes_the_manner_of_an_export_under_its_connections() {
    let disk = Disk::sparse(1 << 20);
    let at = text(disk.path()).to_owned();
    let file = File::of(&export("a", &at, "durability = \"early-ack\"\ndescription = \"before\""));
    let server = file.serve();
    let mut client = Client::try_connect(server.endpoint(), "a").expect("it is served");
    assert_eq!(client.write(PLAIN, 0, &[3; 512]), WireError::OK);
    file.write(&export(
        "a",
        &at,
        "durability = \"writethrough\"\ndescription = \"after\"\nmax-connections = 1",
    ));
    reload(&server, "the mode is writethrough now");
    assert_eq!(disk.content()[..512], [3; 512], "the old mode's promises are kept first");
    let told = listed(server.endpoint())[0].description.clone().expect("a text");
    assert!(told.starts_with("durability=writethrough") && told.ends_with("; after"), "{told}");
    assert_eq!(client.write(PLAIN, 512, &[4; 512]), WireError::OK);
    let mut second = Client::try_connect(server.endpoint(), "a").expect("the handshake is done");
    assert_eq!(second.socket.until_closed(), b"", "one connection is all there may be");
    client.disconnect();
    let again = wait_for("the place to be free", || {
        let mut client = Client::try_connect(server.endpoint(), "a").ok()?;
        client.send(CommandType::FLUSH, PLAIN, 0, 0);
        client.try_reply().ok()
    });
    assert_eq!(again.error, WireError::OK);
}

#[test]
fn a_bad_file_changes_nothing() {
    let disk = Disk::sparse(1 << 20);
    let at = text(disk.path()).to_owned();
    let good = export("a", &at, "");
    let file = File::of(&good);
    let server = file.serve();
    let mut client = Client::try_connect(server.endpoint(), "a").expect("it is served");
    for (bad, complaint) in [
        (good.clone() + &export("b", "memory:1M", "durabilty = \"unsafe\""), "line 11: unknown field"),
        (good.clone() + &export("b", &at, ""), "is served as \"a\" already"),
        ("not toml at all".to_owned(), "line 4"),
    ] {
        file.write(&bad);
        reload(&server, complaint);
        assert_eq!(names(server.endpoint()), ["a"], "{complaint}");
        assert_eq!(client.write(FUA, 0, &[1; 512]), WireError::OK);
    }
    file.write(&(good + &export("b", "memory:1M", "")));
    reload(&server, "added export=\"b\"");
    wait_until("the new export", || names(server.endpoint()) == ["a", "b"]);
}

#[test]
fn a_bad_export_stops_only_itself() {
    let (disk, other) = (Disk::sparse(1 << 20), Disk::sparse(1 << 20));
    let good = export("a", text(disk.path()), "");
    let file = File::of(&good);
    let server = file.serve();
    let mut client = Client::try_connect(server.endpoint(), "a").expect("it is served");
    let with = |what: &str| good.clone() + &export("b", what, "") + &export("c", "memory:1M", "");
    file.write(&with("/nowhere"));
    reload(&server, "was not changed or added: cannot open /nowhere");
    assert_eq!(client.write(FUA, 0, &[1; 512]), WireError::OK);
    wait_until("the good one", || names(server.endpoint()) == ["a", "c"]);
    // What has a bad path goes on as it was.
    file.write(&(export("a", "/nowhere", "") + &export("b", text(other.path()), "")));
    reload(&server, "export=\"a\"");
    wait_until("the good one", || names(server.endpoint()) == ["a", "b"]);
    assert_eq!(client.write(FUA, 0, &[2; 512]), WireError::OK);
    // A reload tries again, and a name may stand for another file.
    file.write(&(export("a", text(other.path()), "") + &export("b", text(disk.path()), "")));
    reload(&server, "added export=\"b\"");
    assert_eq!(client.socket.until_closed(), b"", "it was of the file that a no longer serves");
    wait_until("both", || names(server.endpoint()) == ["a", "b"]);
    let mut client = Client::try_connect(server.endpoint(), "b").expect("it is served");
    assert_eq!(client.read(0, 512), Ok(vec![2; 512]));
}

#[test]
fn stricter_rules_reach_the_connections_that_are_open() {
    let disk = Disk::sparse(1 << 20);
    let file = File::of(&export("a", text(disk.path()), ""));
    let server = file.serve();
    let [tcp, unix] = server.endpoints() else { panic!("two listeners") };
    let connect = |endpoint| Client::try_connect(endpoint, "a").expect("it is served");
    let (mut far, mut near) = (connect(tcp), connect(unix));
    assert_eq!(far.write(PLAIN, 0, &[1; 512]), WireError::OK);
    file.write(&export("a", text(disk.path()), "allow = [\"192.0.2.1\"]"));
    reload(&server, "may no longer use it and are ended connections=1");
    assert_eq!(far.socket.until_closed(), b"");
    assert_eq!(near.write(PLAIN, 512, &[2; 512]), WireError::OK, "it is admitted still");
    file.write(&export("a", text(disk.path()), "read-only = true"));
    reload(&server, "added export=\"a\"");
    assert_eq!(near.socket.until_closed(), b"", "it could write");
    let mut reader = connect(tcp);
    assert_eq!(reader.read(0, 1024), Ok([[1; 512], [2; 512]].concat()));
    assert_eq!(reader.write(PLAIN, 0, &[3; 512]), WireError::EPERM);
}

#[test]
fn clients_in_the_clear_are_ended_when_tls_is_required() {
    let authority = Authority::new();
    let (cert, key) = authority.server();
    let tls = |policy: &str| format!("[tls]\ncert = {cert:?}\nkey = {key:?}\npolicy = {policy:?}\n");
    let file = File::of(&(tls("optional") + &export("a", "memory:1M", "")));
    let server = file.serve();
    let plain = server.endpoint().clone();
    let secret = plain.encrypted(&authority);
    let connect = |endpoint| Client::try_connect(endpoint, "a").expect("it is served");
    let (mut open, mut hidden) = (connect(&plain), connect(&secret));
    assert_eq!(open.write(PLAIN, 0, &[1; 512]), WireError::OK);
    file.write(&(tls("required") + &export("a", "memory:1M", "")));
    reload(&server, "may no longer use it and are ended connections=1");
    assert_eq!(open.socket.until_closed(), b"");
    assert_eq!(hidden.read(0, 512), Ok(vec![1; 512]));
}

#[test]
fn what_became_of_a_file_is_told() {
    let disks = ["shrinks", "grows", "changes", "goes", "stays"].map(|name| (name, Disk::sparse(1 << 20)));
    let exports: String = disks.iter().map(|(name, disk)| export(name, text(disk.path()), "")).collect();
    let file = File::of(&(heard(&disks[0].1) + &exports));
    let (operator, server) = (Operator::beside(&disks[0].1), file.serve());
    let found = || {
        let told: serde_json::Value =
            serde_json::from_str(&operator.order(&["list", "--json"])).expect("JSON");
        let exports = told["exports"].as_array().expect("a list").iter();
        exports.map(|it| it["source"]["found"].as_str().expect("a word").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found(), ["unchanged"; 5]);
    let [shrinks, grows, changes, goes, _stays] = disks.each_ref().map(|(_, disk)| disk.path());
    let set_len = |path: &Path, len| {
        fs::OpenOptions::new().write(true).open(path).and_then(|it| it.set_len(len)).expect("a length");
    };
    set_len(shrinks, 4096);
    set_len(grows, 2 << 20);
    fs::write(changes.with_extension("new"), [1; 512]).expect("another file");
    fs::rename(changes.with_extension("new"), changes).expect("it takes its place");
    fs::remove_file(goes).expect("it is there");
    reload(&server, "is gone; clients still use what was there");
    for said in [
        "was truncated: it has 4096 bytes, and 1048576 are served",
        "has grown to 2097152 bytes, and clients are told 1048576",
        "is another file now, and clients still use the one that was there",
    ] {
        let _line = server.logged(said);
    }
    // By name, as the list is.
    assert_eq!(found(), ["replaced", "gone", "grown", "shrunk", "unchanged"]);
    assert!(operator.order(&["list", "--export", "goes"]).contains("is gone; clients still use"));
    set_len(shrinks, 1 << 20);
    assert_eq!(found()[3], "unchanged");
    assert!(server.logged("is as it was again").contains("shrinks"));
}

#[test]
fn an_export_is_there_for_those_it_admits() {
    let file = File::of(
        &(export("near", "memory:1M", "allow = [\"127.0.0.0/8\"]")
            + &export("far", "memory:1M", "allow = [\"192.0.2.1\", \"2001:db8::/32\"]")),
    );
    let server = file.serve();
    let [tcp, unix] = server.endpoints() else { panic!("two listeners") };
    assert_eq!(names(tcp), ["near"]);
    assert_eq!(Haggle::modern(tcp).ask_about(OptionType::GO, "far").1, ReplyType::ERR_UNKNOWN);
    assert_eq!(Haggle::modern(tcp).ask_about(OptionType::GO, "near").1, ReplyType::ACK);
    assert_eq!(names(unix), ["far", "near"], "the socket's permissions decide who is on this host");
}

#[test]
fn a_certificate_opens_the_exports_that_name_it() {
    let Some(nbdinfo) = tool::find("nbdinfo", "libnbd-bin") else { return };
    let authority = Authority::new();
    let (cert, key) = authority.server();
    let tls = format!("[tls]\ncert = {cert:?}\nkey = {key:?}\nca = {:?}\n", authority.root());
    let file = File::of(
        &(tls
            + &export("ours", "memory:1M", "allow-names = [\"client\", \"x\"]")
            + &export("theirs", "memory:1M", "allow-names = [\"somebody\"]")),
    );
    let server = file.serve();
    let client = authority.client_of(&authority);
    let Endpoint::Tcp(address) = server.endpoints()[0] else { panic!("the first is TCP") };
    let size = |name: &str| {
        let uri = format!("nbds://{address}/{name}?tls-certificates={}", text(client.path()));
        tool::run(&nbdinfo, &["--size", &uri]).status.success()
    };
    assert!(size("ours") && !size("theirs"));
}
