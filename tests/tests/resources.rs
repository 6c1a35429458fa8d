//! Proves that what one client can take is bounded: memory under clients that only send,
//! connections, descriptors, ten thousand connections and a thousand half-open ones at once; that the others are
//! served meanwhile; and that the server recovers when what was taken is given back.

use std::fs::File;
use std::io::Write;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::proto::{CommandType, PAYLOAD_MAX, WireError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::client::{Client, PLAIN, Socket};
use tests::server::{Endpoint, Server};
use tests::wait_until;

const KIB_PER_MIB: u64 = 1 << 10;

/// Whether this process may have so many connections; once for all tests, which share the limit.
fn has_descriptors(connections: usize) -> bool {
    static LIMIT: LazyLock<u64> = LazyLock::new(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
        let wanted = hard.max(12_000);
        // Only root raises the hard one.
        let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
        let kept = || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard);
        raised.map(|()| wanted).or_else(|_| kept()).expect("the soft limit can be raised")
    });
    let has = connections as u64 + 1000 <= *LIMIT;
    if !has {
        tests::tool::skip(&format!("needs {} descriptors (ulimit -Hn)", connections + 1000));
    }
    has
}

/// Sends requests and reads no reply, until the server takes no more of them.
fn send_only(to: &Endpoint, command: CommandType, len: u32) -> Client {
    let mut client = Client::connect(to);
    client.socket.patience(Duration::from_millis(300)).expect("a socket takes a time limit");
    let mut some = Vec::new();
    for _ in 0..1000 {
        client.encode(&mut some, command, PLAIN, 0, len);
    }
    // The kernel's buffers on the way hold a million short replies, not ten.
    for _ in 0..10_000 {
        if client.socket.write_all(&some).is_err() {
            return client;
        }
    }
    panic!("the server takes requests without end");
}

#[test]
fn memory_is_bounded_under_a_client_that_only_sends() {
    let server = Server::builder().export("null:1G").unix().tcp().start();
    let before = server.status("VmHWM");
    let mut witness = Client::connect(server.endpoint());
    for endpoint in server.endpoints() {
        for len in [PAYLOAD_MAX, 1 << 20, 4096] {
            let hog = send_only(endpoint, CommandType::READ, len);
            assert_eq!(witness.read(0, 4096).unwrap(), vec![0; 4096], "others are served");
            drop(hog);
        }
        drop(send_only(endpoint, CommandType::FLUSH, 0));
        assert_eq!(witness.flush(), WireError::OK);
    }
    let grown = server.status("VmHWM") - before;
    println!("one client that only sends costs {grown} KiB of resident memory at most");
    // Two of the longest requests, one more that was taken when there was still room, and what
    // the pool keeps.
    assert!(grown < (3 * 32 + 32 + 16) * KIB_PER_MIB, "it grew by {grown} KiB");
}

#[test]
fn memory_is_bounded_under_many_clients_that_only_send() {
    let server = Server::builder().export("null:1G").unix().tcp().args(&["--max-memory", "128M"]).start();
    let before = server.status("VmHWM");
    let hogs: Vec<Client> =
        (0..8).map(|n| send_only(&server.endpoints()[n % 2], CommandType::READ, 16 << 20)).collect();
    let mut witness = Client::connect(server.endpoint());
    assert_eq!(witness.flush(), WireError::OK, "what needs no memory need not wait");
    let grown = server.status("VmHWM") - before;
    println!("eight clients that only send cost {grown} KiB of resident memory at most");
    assert!(grown < (128 + 32 + 32) * KIB_PER_MIB, "it grew by {grown} KiB");
    drop(hogs);
    assert_eq!(witness.read(0, 1 << 20).unwrap().len(), 1 << 20, "the memory came back");
}

#[test]
fn who_lets_memory_lie_that_others_need_is_dropped() {
    let server = Server::builder().export("null:1G").unix().tcp().args(&["--max-memory", "128M"]).start();
    let hogs = [0, 1].map(|n| send_only(&server.endpoints()[n], CommandType::READ, 16 << 20));
    let mut witness = Client::connect(server.endpoint());
    assert_eq!(witness.read(0, 32 << 20).unwrap().len(), 32 << 20, "in the end there is memory");
    let _said = server.logged("the client holds memory that others need");
    drop(hogs);
}

#[test]
fn no_more_connections_than_allowed() {
    let server = Server::builder().export("memory:1M").unix().tcp().args(&["--max-connections", "4"]).start();
    let mut clients: Vec<Client> = (0..4).map(|n| Client::connect(&server.endpoints()[n % 2])).collect();
    for endpoint in server.endpoints() {
        assert_eq!(Socket::connect(endpoint).unwrap().until_closed(), b"", "the fifth is closed at once");
    }
    assert!(clients.iter_mut().all(|client| client.flush() == WireError::OK));
    assert!(server.log().contains("too many connections (--max-connections)"));
    clients.pop().unwrap().disconnect();
    wait_until("a free place", || Client::try_connect(server.endpoint(), "").is_ok());
}

#[test]
fn out_of_descriptors_it_rests_serves_and_recovers() {
    let limited = ["sh", "-c", "ulimit -n 48; exec \"$@\"", "sh"];
    let server = Server::builder().under(limited).args(&["-v"]).export("memory:1M").unix().tcp().start();
    let mut witness = Client::connect(server.endpoint());
    let many = |to: &Endpoint| (0..40).map(|_| Socket::connect(to).expect("the kernel takes them")).collect();
    let mut sockets: Vec<Socket> =
        server.endpoints().iter().flat_map(|to| -> Vec<Socket> { many(to) }).collect();

    let refusals = || server.log().matches("cannot accept").count();
    wait_until("descriptors to run out", || refusals() > 0);
    let (started, ticks, first) = (Instant::now(), server.cpu_ticks(), refusals());
    wait_until("it to have tried some more", || refusals() >= first + 12);
    assert!(started.elapsed() > Duration::from_millis(500), "it rests between two tries");
    let ticks = server.cpu_ticks() - ticks;
    assert!(ticks < 30, "it used {ticks} ticks of processor time doing nothing");
    assert_eq!(witness.flush(), WireError::OK, "who is connected is served");

    sockets.drain(..40);
    for socket in &mut sockets {
        assert!(socket.receive(18).unwrap().starts_with(b"NBDMAGIC"), "who waited gets in");
    }
    drop(sockets);
    assert_eq!(Client::connect(server.endpoint()).flush(), WireError::OK);
}

#[test]
fn ten_thousand_connections_are_borne_and_a_good_client_is_served() {
    const MANY: usize = 10_000;
    if !has_descriptors(MANY) {
        return;
    }
    // Most of them too many: closed at once. Then all of them within the limit, half through the handshake.
    for limit in ["1024", "10100"] {
        let args = ["--handshake-timeout", "60", "--max-connections", limit];
        let server = Server::builder().export("memory:1M").unix().tcp().args(&args).start();
        let mut good = Client::connect(server.endpoint());
        let before = server.status("VmHWM");
        let mut sockets: Vec<Socket> = Vec::with_capacity(MANY);
        for n in 0..MANY {
            let mut socket = Socket::connect(&server.endpoints()[n % 2]).expect("the kernel takes it");
            // Whom the server has closed cannot say this.
            let _may_be_closed = socket.write_all(&[0, 0, 0, 3, b'I', b'H']);
            sockets.push(socket);
            if n % 500 == 0 {
                assert_eq!(good.write(PLAIN, 0, &[1; 4096]), WireError::OK, "a good client is served");
            }
        }
        assert_eq!(good.read(0, 4096), Ok(vec![1; 4096]));
        let grown = server.status("VmHWM") - before;
        println!("{MANY} connections, {limit} at a time, cost {grown} KiB of resident memory");
        assert!(grown < 160 * KIB_PER_MIB, "they cost {grown} KiB");
        drop(sockets);
        wait_until("room again", || Client::try_connect(server.endpoint(), "").is_ok());
        assert_eq!(good.flush(), WireError::OK);
    }
}

#[test]
fn a_thousand_half_open_connections_are_borne_and_dropped() {
    if !has_descriptors(1000) {
        return;
    }
    let server =
        Server::builder().export("memory:1M").unix().tcp().args(&["--handshake-timeout", "5"]).start();
    let before = server.status("VmHWM");
    let mut sockets: Vec<Socket> =
        (0..1000).map(|n| Socket::connect(&server.endpoints()[n % 2]).unwrap()).collect();
    for socket in &mut sockets {
        assert!(socket.receive(18).unwrap().starts_with(b"NBDMAGIC"));
        socket.write_all(&[0, 0, 0, 3, b'I', b'H']).unwrap();
    }
    for endpoint in server.endpoints() {
        assert_eq!(Client::connect(endpoint).flush(), WireError::OK, "others are served");
    }
    let grown = server.status("VmHWM") - before;
    println!("a thousand half-open connections cost {grown} KiB");
    assert!(grown < 32 * KIB_PER_MIB, "they cost {grown} KiB");
    for socket in &mut sockets {
        assert_eq!(socket.until_closed(), b"");
    }
    assert_eq!(Client::connect(server.endpoint()).flush(), WireError::OK);
}

#[test]
fn three_thousand_exports_and_ten_thousand_connections_fit_into_the_limits_of_a_service() {
    const EXPORTS: usize = 3000;
    const CONNECTIONS: usize = 10_000;
    if !has_descriptors(CONNECTIONS) {
        return;
    }
    // The limits that systemd gives, as far as this process has them.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    let (soft, hard) = (1024, hard.min(524_288));
    if hard < 16_500 {
        return tests::tool::skip("needs 16500 descriptors (ulimit -Hn)");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = format!(
        "unix = [\"{}\"]\nmax-connections = {}\n",
        dir.path().join("nbd.sock").display(),
        CONNECTIONS + 1
    );
    for number in 0..EXPORTS {
        let path = dir.path().join(format!("{number}.img"));
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("an image");
        config += &format!("[[export]]\nname = \"{number}\"\nserve = \"{}\"\n", path.display());
    }
    let file = dir.path().join("nbd.toml");
    std::fs::write(&file, config).expect("a configuration");
    let limited = ["sh", "-c", &format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$@\""), "sh"];
    let alone = Server::of("memory:1M");
    let server = Server::builder().under(limited).config(&file, 1).start();
    let cost = |name: &str, before: u64, count: usize| (server.status(name) - before) as f64 / count as f64;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it lives").count();
    let (opened, resident) = (descriptors(), server.status("VmRSS"));
    let exports = cost("VmRSS", alone.status("VmRSS"), EXPORTS);
    let each = opened as f64 / EXPORTS as f64;
    println!("an idle export of a file costs {exports:.1} KiB and {each:.2} descriptors");

    let room = usize::try_from(hard).expect("a limit is small") - opened - 100;
    let connections = CONNECTIONS.min(room);
    let mut clients: Vec<Client> = (0..connections)
        .map(|number| {
            let export = (number % EXPORTS).to_string();
            Client::try_connect(server.endpoint(), &export).expect("it is served")
        })
        .collect();
    for client in &mut clients {
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    let idle = cost("VmRSS", resident, connections);
    let each = (descriptors() - opened) as f64 / connections as f64;
    println!("an idle connection, one of {connections}, costs {idle:.1} KiB and {each:.2} descriptors");
    assert!(exports < 32.0 && idle < 64.0, "KiB of each");
    assert_eq!(clients[0].write(PLAIN, 0, &[1; 512]), WireError::OK);
}
