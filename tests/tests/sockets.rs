//! Proves where a server can be reached: a Unix socket by whom its mode and its group admit, all addresses of both
//! families by one word, and addresses of IPv6 that mean something within their zone only.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::proto::WireError;
use nix::unistd::{Group, User, geteuid};
use tests::client::Client;
use tests::server::{Endpoint, Server, attach_tool, server_tool};
use tests::tool;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

#[test]
fn a_unix_socket_is_for_those_its_mode_and_group_admit() {
    if !geteuid().is_root() {
        return tool::skip("needs root, to become somebody else");
    }
    let Some(nbdinfo) = tool::find("nbdinfo", "libnbd-bin") else { return };
    let nobody = User::from_name("nobody").expect("users can be read").expect("there is a nobody");
    let group = Group::from_name("daemon").expect("groups can be read").expect("there are daemons");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let socket = dir.path().join("nbd.sock");
    let reaches = |gid: u32| {
        let uri = format!("nbd+unix:///?socket={}", text(&socket));
        let mut command = Command::new(&nbdinfo);
        command.args(["--size", &uri]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.uid(nobody.uid.as_raw()).gid(gid).status().expect("nbdinfo can be started").success()
    };
    let serve = |words: &[&str]| Server::builder().export("memory:1M").unix_at(&socket).args(words).start();
    let (member, stranger) = (group.gid.as_raw(), nobody.gid.as_raw());
    for (words, mode, admitted) in [
        (&[][..], None, [false, false]),
        (&["--unix-group", "daemon"], Some(0o660), [true, false]),
        (&["--unix-mode", "666"], Some(0o666), [true, true]),
        (&["--unix-mode", "0600", "--unix-group", "daemon"], Some(0o600), [false, false]),
    ] {
        let server = serve(words);
        let told = fs::metadata(&socket).expect("it is there");
        assert!(mode.is_none_or(|mode| told.mode() & 0o777 == mode), "{words:?}: {:o}", told.mode());
        assert_eq!([member, stranger].map(reaches), admitted, "{words:?}");
        assert_eq!(server.terminate().code, Some(0));
    }
    let config = dir.path().join("nbd.toml");
    let says = |mode: &str| {
        let text = format!("unix = [{socket:?}]\nunix-mode = {mode:?}\n[[export]]\nserve = \"memory:1M\"\n");
        fs::write(&config, text).expect("it can be written");
    };
    says("0666");
    let server = Server::builder().config(&config, 1).start();
    assert!(reaches(stranger));
    drop(server);
    says("rw");
    let done = tool::run(server_tool(), &["check-config", text(&config)]);
    assert!(done.stderr.contains("\"rw\" is no mode; write for example 660"), "{done:?}");
    let refused = Server::builder().export("memory:1M").unix().args(&["--unix-group", "no such"]).refused();
    assert!(refused.log.contains("there is no group \"no such\""), "{refused:?}");
}

fn port_of(server: &Server) -> u16 {
    match server.endpoint() {
        Endpoint::Tcp(address) => address.port(),
        other => panic!("{other:?} is not TCP"),
    }
}

fn is_reached(ip: impl Into<IpAddr>, port: u16) -> bool {
    let there = Endpoint::Tcp(SocketAddr::new(ip.into(), port));
    Client::try_connect(&there, "").is_ok_and(|mut client| client.flush() == WireError::OK)
}

#[test]
fn no_address_means_both_families() {
    for word in [":0", "*:0", "[::]:0"] {
        let server = Server::builder().export("memory:1M").args(&["--listen", word]).inheriting(1).start();
        let port = port_of(&server);
        assert!(is_reached(Ipv4Addr::LOCALHOST, port) && is_reached(Ipv6Addr::LOCALHOST, port), "{word}");
    }
    // Who lists both gets both.
    let free = Server::builder().export("memory:1M").tcp().start();
    let port = port_of(&free);
    drop(free);
    let (six, four) = (format!("[::]:{port}"), format!("0.0.0.0:{port}"));
    for words in [["--listen", &six, "--listen", &four], ["--listen", &four, "--listen", &six]] {
        let server = Server::builder().export("memory:1M").args(&words).inheriting(2).start();
        assert!(is_reached(Ipv4Addr::LOCALHOST, port) && is_reached(Ipv6Addr::LOCALHOST, port), "{words:?}");
        assert_eq!(server.terminate().code, Some(0));
    }
    for (word, complaint) in
        [("10809", "or :10809 for all addresses"), ("no-such-host.invalid:1", "nothing is known of")]
    {
        let refused = Server::builder().export("memory:1M").args(&["--listen", word]).refused();
        assert!(refused.log.contains(complaint), "{refused:?}");
    }
}

/// An address of the loopback that means something there only, until it is dropped.
struct LinkLocal;

const LINK_LOCAL: &str = "fe80::77";

impl LinkLocal {
    fn add() -> Option<LinkLocal> {
        let ip = tool::find("ip", "iproute2")?;
        if !geteuid().is_root() {
            tool::skip("needs root, for an address");
            return None;
        }
        let added = tool::run(&ip, &["address", "add", &format!("{LINK_LOCAL}/128"), "dev", "lo", "nodad"]);
        assert!(added.status.success() || added.stderr.contains("exists"), "{added:?}");
        Some(LinkLocal)
    }
}

impl Drop for LinkLocal {
    fn drop(&mut self) {
        if let Some(ip) = tool::find("ip", "iproute2") {
            let _done = tool::run(&ip, &["address", "delete", &format!("{LINK_LOCAL}/128"), "dev", "lo"]);
        }
    }
}

/// A server whose URI says more than an address does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _may_be_reaped = self.0.wait();
    }
}

#[test]
fn an_address_has_a_zone() {
    let Some(_address) = LinkLocal::add() else { return };
    let Some(nbdinfo) = tool::find("nbdinfo", "libnbd-bin") else { return };
    let listen = format!("[{LINK_LOCAL}%lo]:0");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let said = dir.path().join("uri");
    let _server = Running(
        Command::new(server_tool())
            .args(["--quiet", "--listen", &listen, "memory:1M"])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&said).expect("a file can be made"))
            .spawn()
            .expect("it can be started"),
    );
    let uri = tests::wait_for("the URI", || {
        fs::read_to_string(&said).ok().filter(|text| text.ends_with('\n')).map(|text| text.trim().to_owned())
    });
    let sizes = [
        tool::succeed(&nbdinfo, &["--size", &uri]).trim().to_owned(),
        tool::succeed(attach_tool(), &["info", "--json", &uri]),
    ];
    assert!(uri.starts_with("nbd://[fe80::77%25lo]:"), "{uri}");
    assert_eq!(sizes[0], "1048576");
    assert!(sizes[1].contains("\"size_bytes\":1048576"), "{}", sizes[1]);
}
