//! Proves that real clients get what structured replies are for: holes and errors in a READ piece by piece,
//! extents by the contexts that were selected, lists of exports; and that they see no difference over TLS.

use std::path::Path;

use serde_json::Value;
use tests::disk::{Disk, pattern};
use tests::pki::Authority;
use tests::server::{Endpoint, Server};
use tests::tool;

const MIB: u64 = 1 << 20;

/// Data, a hole, data: a MiB each.
fn striped() -> Disk {
    let disk = Disk::sparse(3 * MIB);
    let write = |at: u64, data: &[u8]| {
        let file = std::fs::OpenOptions::new().write(true).open(disk.path()).expect("it is there");
        std::os::unix::fs::FileExt::write_all_at(&file, data, at).expect("it can be written");
    };
    write(0, &pattern(1, 1 << 20));
    write(2 * MIB, &pattern(2, 1 << 20));
    disk
}

/// Runs a test over Unix, TCP and TLS; it is given the URI.
fn everywhere(disk: &Disk, args: &[&str], test: impl Fn(&str)) {
    let server = Server::builder().export(disk.spec()).args(args).unix().tcp().start();
    server.endpoints().iter().for_each(|endpoint| test(&endpoint.uri("")));
    assert_eq!(server.terminate().code, Some(0));
    let authority = Authority::new();
    let trusting = authority.anonymous();
    let server = Server::builder().export(disk.spec()).args(args).tls(&authority).tcp().start();
    let Endpoint::Tcp(address) = server.endpoint() else { panic!("it is TCP") };
    test(&format!("nbds://{address}/?tls-certificates={}", text(trusting.path())));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A READ in pieces: which kinds there are, that each byte is told once, and what an error is.
const PIECES: &str = r#"
import errno
h.add_meta_context('base:allocation')
h.set_uri_allow_local_file(True)
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
told = bytearray(3 << 20)
seen = [0] * 3
kinds = set()
def piece(data, at, kind, error):
    assert error.value == 0
    kinds.add(kind)
    told[at:at + len(data)] = data
    seen[0] += len(data)
read = h.pread_structured(3 << 20, 0, piece)
assert read == bytes(told) and seen[0] == 3 << 20
assert kinds == {nbd.READ_DATA, nbd.READ_HOLE}, kinds
kinds.clear()
h.pread_structured(3 << 20, 0, piece, nbd.CMD_FLAG_DF)
assert kinds == {nbd.READ_DATA}, kinds

extents = []
h.block_status(3 << 20, 0, lambda name, at, told, error: extents.append((name, told)))
assert extents == [('base:allocation', [1 << 20, 0, 1 << 20, 3, 1 << 20, 0])], extents
extents.clear()
h.block_status(2 << 20, 512, lambda name, at, told, error: extents.append(told), nbd.CMD_FLAG_REQ_ONE)
assert extents == [[(1 << 20) - 512, 0]], extents

h.set_strict_mode(0)
for call, wanted in [
    (lambda: h.pread_structured(512, 3 << 20, piece), errno.EINVAL),
    (lambda: h.block_status(512, 3 << 20, lambda *_: None), errno.EINVAL),
    (lambda: h.trim(512, 3 << 20), errno.EINVAL),
    (lambda: h.zero(512, 3 << 20), errno.ENOSPC),
    (lambda: h.pread(512, 0, 1 << 9), errno.EINVAL),
]:
    try:
        call()
        raise AssertionError('that should have been refused')
    except nbd.Error as error:
        assert error.errno == errno.errorcode[wanted], error
h.shutdown()
"#;

#[test]
fn nbdsh_sees_holes_data_extents_and_errors() {
    let Some(nbdsh) = tool::find("nbdsh", "python3-libnbd") else { return };
    let disk = striped();
    for mode in ["writeback", "early-ack"] {
        everywhere(&disk, &["--durability", mode], |uri| {
            tool::succeed(&nbdsh, &["-c", &format!("uri = {uri:?}"), "-c", PIECES]);
        });
    }
}

#[test]
fn nbdinfo_maps_what_is_there() {
    let Some(nbdinfo) = tool::find("nbdinfo", "libnbd-bin") else { return };
    everywhere(&striped(), &[], |uri| {
        let map: Value = serde_json::from_str(&tool::succeed(&nbdinfo, &["--map", "--json", uri])).unwrap();
        let lengths: Vec<_> = map.as_array().unwrap().iter().map(|it| (&it["length"], &it["type"])).collect();
        let wanted = [(MIB, 0), (MIB, 3), (MIB, 0)].map(|(len, kind)| (Value::from(len), Value::from(kind)));
        assert!(lengths.into_iter().eq(wanted.iter().map(|(len, kind)| (len, kind))), "{map}");
    });
}

#[test]
fn qemu_img_maps_and_compares_what_is_there() {
    let Some(qemu_img) = tool::find("qemu-img", "qemu-utils") else { return };
    let disk = striped();
    let server = Server::builder().export(disk.spec()).unix().tcp().start();
    for endpoint in server.endpoints() {
        let uri = endpoint.uri("");
        let map = tool::succeed(&qemu_img, &["map", "--output=json", "-f", "raw", &uri]);
        let map: Value = serde_json::from_str(&map).unwrap();
        let told: Vec<_> = map.as_array().unwrap().iter().map(|it| (&it["length"], &it["zero"])).collect();
        assert_eq!(told.len(), 3, "{map}");
        assert!(told.iter().all(|(len, _)| **len == MIB) && told[1].1 == true && told[0].1 == false, "{map}");
    }
    tool::succeed(
        &qemu_img,
        &["compare", "-U", "-f", "raw", "-F", "raw", &server.endpoint().uri(""), text(disk.path())],
    );
}

#[test]
fn nbd_client_lists_exports() {
    let Some(nbd_client) = tool::find("nbd-client", "nbd-client") else { return };
    let server = Server::builder().export("one=memory:1M").export("two=memory:2M").tcp().start();
    let Endpoint::Tcp(address) = server.endpoint() else { panic!("it is TCP") };
    let port = address.port().to_string();
    let said = tool::run(&nbd_client, &["-l", "127.0.0.1", "-p", &port]);
    let all = format!("{}{}", said.stdout, said.stderr);
    assert!(said.status.success() && all.contains("one") && all.contains("two"), "{all}");
}
