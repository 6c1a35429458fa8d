//! Proves, against the running server: libnbd and QEMU encrypt every byte to it and back, with their
//! certificates checked; who shows none, or one of a stranger, or speaks in the clear, gets nothing
//! where that is required; nothing that was sent in the clear is taken for encrypted; a handshake
//! that stalls ends in time; and bad files are refused in words.

use std::io::{Read, Write};
use std::path::Path;

use common::command::RequestHeader;
use common::option::put_option;
use common::proto::{CommandFlags, CommandType, OptionType, ReplyType, WireError};
use tests::client::Client;
use tests::disk::{Disk, pattern};
use tests::haggle::Haggle;
use tests::pki::Authority;
use tests::server::{Builder, Endpoint, Server, attach_tool};
use tests::tool;

const MIB: usize = 1 << 20;

/// A server with a certificate of `authority` and more arguments.
fn server(authority: &Authority, args: &[&str], disk: &Disk) -> Server {
    encrypting(authority, args).export(disk.spec()).unix().tcp().start()
}

fn encrypting(authority: &Authority, args: &[&str]) -> Builder {
    Server::builder().tls(authority).args(args)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// The URI at which a libnbd client with these certificates finds the default export.
fn uri(endpoint: &Endpoint, certificates: &Path) -> String {
    let dir = text(certificates);
    match endpoint {
        Endpoint::Tcp(address) => format!("nbds://{address}/?tls-certificates={dir}"),
        Endpoint::Unix(path) => format!("nbds+unix:///?socket={}&tls-certificates={dir}", path.display()),
        Endpoint::Tls(inner, _) => uri(inner, certificates),
    }
}

#[test]
fn libnbd_copies_both_ways_encrypted() {
    let Some(nbdcopy) = tool::find("nbdcopy", "libnbd-bin") else { return };
    let authority = Authority::new();
    let client = authority.client_of(&authority);
    let content = pattern(4, 10 * MIB);
    let source = Disk::holding(&content);
    for transport in 0..2 {
        let disk = Disk::sparse(10 << 20);
        let server = server(&authority, &["--tls-ca", text(&authority.root())], &disk);
        let there = uri(&server.endpoints()[transport], client.path());
        let many = ["--connections=4", "--requests=16", "--flush"];
        let back = disk.dir().join("back.img");
        for (from, to) in [(text(source.path()), &there[..]), (&there, text(&back))] {
            tool::succeed(&nbdcopy, &[many[0], many[1], many[2], from, to]);
        }
        assert!(disk.content() == content, "what was copied in");
        assert!(std::fs::read(back).expect("it can be read") == content, "what was copied out");
        let exit = server.terminate();
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        assert!(exit.stdout.lines().all(|line| line.starts_with("nbds")), "{}", exit.stdout);
    }
}

#[test]
fn qemu_img_converts_encrypted() {
    let Some(qemu_img) = tool::find("qemu-img", "qemu-utils") else { return };
    let authority = Authority::new();
    let client = authority.client_of(&authority);
    let content = pattern(5, 4 * MIB);
    let (source, disk) = (Disk::holding(&content), Disk::sparse(4 << 20));
    let server = server(&authority, &["--tls-ca", text(&authority.root())], &disk);
    let Endpoint::Tcp(address) = server.endpoints()[0] else { panic!("the first is TCP") };
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", text(client.path()));
    let there = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,\
         file.server.port={},file.tls-creds=t",
        address.port()
    );
    let arguments = [
        "convert",
        "-n",
        "--object",
        &credentials,
        "--target-image-opts",
        "-f",
        "raw",
        text(source.path()),
        &there,
    ];
    tool::succeed(&qemu_img, &arguments);
    assert!(disk.content() == content, "what was converted in");
}

#[test]
fn who_cannot_show_what_is_required_gets_nothing() {
    let Some(nbdinfo) = tool::find("nbdinfo", "libnbd-bin") else { return };
    let (authority, stranger) = (Authority::new(), Authority::new());
    let disk = Disk::sparse(1 << 20);
    let size = |server: &Server, dir: &Path| {
        let done = tool::run(&nbdinfo, &["--size", &uri(&server.endpoints()[0], dir)]);
        done.status.success().then(|| done.stdout.trim().to_owned())
    };
    let (good, bad, none) =
        (authority.client_of(&authority), authority.client_of(&stranger), authority.anonymous());
    let misled = stranger.client_of(&authority);
    let told = Some("1048576".to_owned());

    let checked = server(&authority, &["--tls-ca", text(&authority.root())], &disk);
    assert_eq!(size(&checked, bad.path()), None, "a certificate of a stranger");
    assert_eq!(size(&checked, none.path()), None, "no certificate");
    assert_eq!(size(&checked, good.path()), told);
    assert!(!tool::run(&nbdinfo, &[checked.endpoint().uri("")]).status.success(), "in the clear");
    assert_eq!(checked.terminate().code, Some(0));

    let open = server(&authority, &["--tls", "optional"], &disk);
    assert_eq!(size(&open, none.path()), told, "no certificate is asked for");
    assert_eq!(size(&open, misled.path()), None, "the client trusts another authority");
    assert_eq!(Client::connect(open.endpoint()).flush(), WireError::OK, "in the clear");
}

#[test]
fn in_the_clear_only_starttls_is_heard() {
    let authority = Authority::new();
    let disk = Disk::sparse(1 << 20);
    let server = server(&authority, &[], &disk);
    for endpoint in server.endpoints() {
        let mut haggle = Haggle::modern(endpoint);
        assert_eq!(haggle.ask(OptionType::LIST, b""), (vec![], ReplyType::ERR_TLS_REQD));
        assert_eq!(haggle.ask_about(OptionType::GO, ""), (vec![], ReplyType::ERR_TLS_REQD));
        assert_eq!(haggle.ask(OptionType::STARTTLS, b"x"), (vec![], ReplyType::ERR_INVALID));
        assert_eq!(haggle.ask(OptionType::ABORT, b""), (vec![], ReplyType::ACK));
        let mut haggle = Haggle::modern(endpoint);
        haggle.say(OptionType::EXPORT_NAME, b"");
        assert_eq!(haggle.socket.until_closed(), b"");
    }
}

#[test]
fn what_was_slipped_in_before_the_handshake_is_not_obeyed() {
    let authority = Authority::new();
    let disk = Disk::sparse(1 << 20);
    let server = server(&authority, &["--tls", "optional"], &disk);
    for endpoint in server.endpoints() {
        let mut haggle = Haggle::modern(endpoint);
        let mut together = Vec::new();
        put_option(&mut together, OptionType::STARTTLS, b"");
        put_option(&mut together, OptionType::LIST, b"");
        haggle.socket.write_all(&together).expect("the server listens");
        assert_eq!(haggle.hear(OptionType::STARTTLS).expect("an answer").0, ReplyType::ACK);
        let rest = haggle.socket.until_closed();
        // A TLS alert is all that comes: content type 21.
        assert!(rest.is_empty() || rest[0] == 21, "{rest:?}");
    }
    assert_eq!(Client::connect(server.endpoint()).flush(), WireError::OK);
}

#[test]
fn both_versions_are_spoken_without_tickets_and_the_client_chooses_the_cipher() {
    let authority = Authority::new();
    let disk = Disk::sparse(1 << 20);
    let server = server(&authority, &[], &disk);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut haggle = Haggle::modern(server.endpoint());
        assert_eq!(haggle.ask(OptionType::STARTTLS, b""), (vec![], ReplyType::ACK));
        let mut session = authority.session(version);
        let mut stream = rustls::Stream::new(&mut session, &mut haggle.socket);
        let mut out = Vec::new();
        put_option(&mut out, OptionType::LIST, b"");
        put_option(&mut out, OptionType::ABORT, b"");
        stream.write_all(&out).expect("the server listens");
        // Everything that the server ever sends, tickets included.
        let mut said = Vec::new();
        let _without_goodbye = stream.read_to_end(&mut said);
        assert!(said.ends_with(&[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0]), "ABORT is acknowledged: {said:?}");
        assert_eq!(session.protocol_version(), Some(version.version));
        assert_eq!(session.tls13_tickets_received(), 0);
        let suite = session.negotiated_cipher_suite().expect("there is one").suite();
        assert!(format!("{suite:?}").contains("AES"), "it prefers that: {suite:?}");
    }
}

#[test]
fn the_end_of_a_reply_is_never_held_back() {
    let authority = Authority::new();
    let (cert, key) = authority.server();
    // One worker, so that what it has said to one client shows how far it is with the other.
    let arguments =
        ["--workers", "1", "--tls", "optional", "--tls-cert", text(&cert), "--tls-key", text(&key)];
    let server = Server::builder().export("memory:4M").args(&arguments).unix().start();
    let mut other = Client::connect(server.endpoint());
    let mut haggle = Haggle::modern(server.endpoint());
    assert_eq!(haggle.ask(OptionType::STARTTLS, b""), (vec![], ReplyType::ACK));
    let mut session = authority.session(&rustls::version::TLS13);
    let mut stream = rustls::Stream::new(&mut session, &mut haggle.socket);
    let mut out = Vec::new();
    put_option(&mut out, OptionType::EXPORT_NAME, b"");
    stream.write_all(&out).expect("the server listens");
    stream.read_exact(&mut [0; 10]).expect("the export is there");
    // Somewhere among these lengths is one whose last bytes are encrypted when the socket is full.
    for length in (1..=32).map(|n| n * (32 << 10)) {
        let (command, flags) = (CommandType::READ, CommandFlags::NONE);
        let mut request = Vec::new();
        RequestHeader { flags, command, cookie: 1, offset: 0, length }.encode(&mut request);
        stream.write_all(&request).expect("the server takes requests");
        for _ in 0..2 {
            assert_eq!(other.flush(), WireError::OK);
        }
        let mut reply = vec![0; 16 + usize::try_from(length).expect("it is short")];
        stream.read_exact(&mut reply).unwrap_or_else(|error| panic!("a reply of {length} bytes: {error}"));
    }
}

#[test]
fn a_handshake_that_stalls_ends_in_time() {
    let authority = Authority::new();
    let disk = Disk::sparse(1 << 20);
    let server = server(&authority, &["--handshake-timeout", "0.3"], &disk);
    for endpoint in server.endpoints() {
        let mut haggle = Haggle::modern(endpoint);
        assert_eq!(haggle.ask(OptionType::STARTTLS, b""), (vec![], ReplyType::ACK));
        // A record of 512 bytes is announced and never comes.
        haggle.socket.write_all(&[22, 3, 1, 2, 0, 1]).expect("the server listens");
        assert_eq!(haggle.socket.until_closed(), b"");
    }
}

#[test]
fn bad_files_are_refused_in_words() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (cert, key) = authority.server();
    let (_, foreign) = other.server();
    let empty = Disk::holding(b"nothing of the kind");
    for (words, complaint) in [
        (vec!["--tls-cert", text(&cert)], "--tls-key"),
        (vec!["--tls", "optional"], "--tls-cert"),
        (vec!["--tls-cert", "/nowhere", "--tls-key", text(&key)], "--tls-cert /nowhere"),
        (vec!["--tls-cert", text(empty.path()), "--tls-key", text(&key)], "no certificate"),
        (vec!["--tls-cert", text(&cert), "--tls-key", text(empty.path())], "--tls-key"),
        (vec!["--tls-cert", text(&cert), "--tls-key", text(&foreign)], "do not go together"),
        (
            vec!["--tls-cert", text(&cert), "--tls-key", text(&key), "--tls-ca", text(empty.path())],
            "--tls-ca",
        ),
    ] {
        let exit = Server::builder().args(&words).export("memory:1M").refused();
        assert_ne!(exit.code, Some(0), "{words:?}");
        assert!(exit.log.contains(complaint), "{words:?}: {}", exit.log);
    }
}

#[test]
fn nbd_attach_info_asks_encrypted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (trusted, anonymous) = (authority.client_of(&authority), authority.anonymous());
    let wants_clients = ["--tls-ca", text(&authority.root())].map(str::to_owned);
    let disk = Disk::sparse(MIB as u64);
    let server = server(&authority, &[&wants_clients[0], &wants_clients[1]], &disk);
    for endpoint in server.endpoints() {
        let there = uri(endpoint, trusted.path());
        let told = tool::succeed(attach_tool(), &["info", "--json", &there]);
        assert!(told.contains("\"size_bytes\":1048576"), "{told}");
        let (bare, _) = there.split_once(['?', '&']).expect("it has a parameter");
        let bare = if bare.contains("unix") { there.rsplit_once('&').expect("two").0 } else { bare };
        let dir = ["--tls-certificates", text(trusted.path())];
        assert!(tool::succeed(attach_tool(), &["info", dir[0], dir[1], bare]).contains("1 MiB"));
        let other = stranger.client_of(&authority);
        for (args, complaint) in [
            (&[bare][..], "TLS needs the root"),
            (&["--tls-certificates", "/nowhere", bare], "/nowhere/ca-cert.pem"),
            (&["--tls-certificates", text(anonymous.path()), bare], "ertificate"),
            (&["--tls-certificates", text(other.path()), bare], "invalid peer certificate"),
            (&[dir[0], dir[1], "--tls-hostname", "example.com", bare], "not valid for name"),
            (&[&bare.replace("nbds", "nbd")], "it requires TLS"),
        ] {
            let done = tool::run(attach_tool(), &[&["info"], args].concat());
            assert!(!done.status.success() && done.stderr.contains(complaint), "{complaint}: {done:?}");
        }
    }
    let plain = Server::of("memory:1M");
    let there = uri(plain.endpoint(), trusted.path());
    let done = tool::run(attach_tool(), &["info", &there]);
    assert!(!done.status.success() && done.stderr.contains("the server has no TLS"), "{done:?}");
}
