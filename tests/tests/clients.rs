//! Proves that the clients people use work as they are: libnbd's nbdinfo, nbdcopy and nbdsh,
//! QEMU's qemu-img and qemu-io, and fio's nbd engine with verification, each over a Unix socket
//! and over TCP. What they wrote is compared with the file beneath.

use std::fs;

use serde_json::Value;
use tests::disk::{Disk, pattern};
use tests::server::{Endpoint, Server, attach_tool};
use tests::tool;

const MIB: usize = 1 << 20;

/// Data, a hole, data: a disk as disks are.
fn image() -> Vec<u8> {
    let mut image = vec![0; 10 * MIB];
    image[..MIB].copy_from_slice(&pattern(1, MIB));
    image[5 * MIB + 100..5 * MIB + 70_000].copy_from_slice(&pattern(2, 69_900));
    image[9 * MIB..].copy_from_slice(&pattern(3, MIB));
    image
}

/// Serves a fresh disk of ten MiB for each transport.
fn everywhere(args: &[&str], content: &[u8], test: impl Fn(&Disk, &Endpoint)) {
    for transport in 0..2 {
        let disk = Disk::holding(content);
        let server = Server::builder().export(disk.spec()).args(args).unix().tcp().start();
        test(&disk, &server.endpoints()[transport]);
        let exit = server.terminate();
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        assert!(!exit.log.contains("WARN") && !exit.log.contains("ERROR"), "{}", exit.log);
    }
}

#[test]
fn nbdinfo_tells_what_the_server_can() {
    let Some(nbdinfo) = tool::find("nbdinfo", "libnbd-bin") else { return };
    let server = Server::builder().export("memory:10M").export("other=null:1G").unix().tcp().start();
    for endpoint in server.endpoints() {
        let told = tool::succeed(&nbdinfo, &["--json", &endpoint.uri("")]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let export = &told["exports"][0];
        assert_eq!(
            (&told["protocol"], &export["export-size"]),
            (&"newstyle-fixed".into(), &(10 * MIB).into())
        );
        let zeroes = ["can_zero", "can_fast_zero", "can_trim"];
        for can in ["can_flush", "can_fua", "can_multi_conn", "can_df", "can_cache"].iter().chain(&zeroes) {
            assert_eq!(export[can], true, "{can}");
        }
        for cannot in ["is_read_only", "is_rotational"] {
            assert_eq!(export[cannot], false, "{cannot}");
        }
        let description = export["description"].as_str().expect("a text");
        assert!(description.starts_with("durability=writeback epoch="), "{description}");
        assert_eq!(export["block_size_minimum"], 1);
        let list = tool::succeed(&nbdinfo, &["--list", "--json", &endpoint.uri("")]);
        let list: Value = serde_json::from_str(&list).unwrap();
        let names: Vec<&Value> =
            list["exports"].as_array().unwrap().iter().map(|it| &it["export-name"]).collect();
        assert_eq!(names, ["", "other"]);
        assert_eq!(tool::succeed(&nbdinfo, &["--size", &endpoint.uri("other")]).trim(), "1073741824");
        assert!(!tool::run(&nbdinfo, &[endpoint.uri("absent")]).status.success());
    }
}

#[test]
fn nbd_attach_info_tells_what_the_server_can() {
    let server = Server::builder().export("memory:10M").export("other=null:1G").unix().tcp().start();
    let tool = attach_tool();
    for endpoint in server.endpoints() {
        let told = tool::succeed(tool, &["info", "--json", &endpoint.uri("")]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let names: Vec<&Value> = told.as_array().unwrap().iter().map(|it| &it["name"]).collect();
        assert_eq!(names, ["", "other"]);
        assert_eq!((&told[0]["size_bytes"], &told[0]["replies"]), (&(10 * MIB).into(), &"extended".into()));
        assert_eq!(told[0]["block_sizes"]["preferred"], 4096);
        assert_eq!(told[0]["contexts"][0], "base:allocation");
        let flags = told[0]["flags"].as_array().unwrap();
        assert!(flags.contains(&"SEND_FAST_ZERO".into()) && flags.contains(&"SEND_DF".into()), "{flags:?}");
        let other = tool::succeed(tool, &["info", &endpoint.uri("other")]);
        assert!(other.starts_with("export \"other\": 1"), "{other}");
        let absent = tool::run(tool, &["info", &endpoint.uri("absent")]);
        assert!(!absent.status.success() && absent.stderr.contains("no export of that name"), "{absent:?}");
    }
    let exit = server.terminate();
    assert!(!exit.log.contains("WARN"), "{}", exit.log);
}

#[test]
fn nbd_attach_info_tells_what_other_servers_can() {
    let Some(nbdkit) = tool::find("nbdkit", "nbdkit") else { return };
    let command = format!("'{}' info --json $uri", attach_tool().display());
    let told = tool::succeed(&nbdkit, &["-U", "-", "memory", "1M", "--run", &command]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told[0]["size_bytes"], &told[0]["replies"]), (&MIB.into(), &"structured".into()));
    assert_eq!(told[0]["contexts"], serde_json::json!(["base:allocation"]));
}

/// What nbdsh finds out about the contexts of an export, and what its extents say.
const CONTEXTS: &str = r"
names = []
h.set_opt_mode(True)
h.connect_uri(uri)
h.add_meta_context('x-nbd-durability:')
h.opt_list_meta_context(lambda name: names.append(name))
(epoch,) = names
assert epoch.startswith('x-nbd-durability:epoch='), epoch
other = epoch[:-1] + ('0' if epoch[-1] != '0' else '1')
h.clear_meta_contexts()
for name in (other, 'base:allocation', epoch):
    h.add_meta_context(name)
h.opt_go()
assert h.can_meta_context(epoch) and not h.can_meta_context(other)
extents = []
h.block_status(1 << 20, 4096, lambda context, at, entries, error: extents.append((context, at, entries)), nbd.CMD_FLAG_REQ_ONE)
assert extents == [('base:allocation', 4096, [1 << 20, 0]), (epoch, 4096, [1 << 20, 0])], extents
assert h.pread(5, 0) == bytes(5)
h.shutdown()
print(epoch)
";

#[test]
fn nbdsh_finds_the_epoch_among_the_metadata_contexts() {
    let Some(nbdsh) = tool::find("nbdsh", "python3-libnbd") else { return };
    everywhere(&[], &vec![0; 2 << 20], |_, endpoint| {
        let uri = format!("uri = {:?}", endpoint.uri(""));
        tool::succeed(&nbdsh, &["-c", &uri, "-c", CONTEXTS]);
    });
}

#[test]
fn nbdcopy_copies_both_ways_on_four_connections() {
    let Some(nbdcopy) = tool::find("nbdcopy", "libnbd-bin") else { return };
    let source = Disk::holding(&image());
    everywhere(&[], &pattern(7, 10 * MIB), |disk, endpoint| {
        let many = ["--connections=4", "--requests=16", "--flush"];
        let copy = |from: &str, to: &str| {
            tool::succeed(&nbdcopy, &[many[0], many[1], many[2], from, to]);
        };
        copy(source.path().to_str().unwrap(), &endpoint.uri(""));
        assert!(disk.content() == image(), "what was copied in");
        let back = disk.dir().join("back.img");
        copy(&endpoint.uri(""), back.to_str().unwrap());
        assert!(fs::read(back).unwrap() == image(), "what was copied out");
    });
}

#[test]
fn nbdcopy_copies_from_server_to_server() {
    let Some(nbdcopy) = tool::find("nbdcopy", "libnbd-bin") else { return };
    let from = Disk::holding(&image());
    let source = Server::builder().export(from.spec()).args(&["--read-only"]).unix().start();
    everywhere(&["--durability", "writethrough"], &pattern(7, 10 * MIB), |disk, endpoint| {
        tool::succeed(&nbdcopy, &[source.endpoint().uri(""), endpoint.uri("")]);
        assert!(disk.content() == image(), "what was copied");
    });
}

/// What a libnbd user would type, and a little of what none should.
const SHELL: &str = r#"
size = h.get_size()
assert size == 10 * 1024 * 1024, size
assert h.can_fua() and h.can_flush() and h.can_trim() and h.can_zero() and h.can_multi_conn()
assert not h.is_read_only() and h.can_df() and h.get_structured_replies_negotiated()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * 1024 * 1024

data = bytes(range(1, 201)) * 50
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(len(data), 12345) == data
h.zero(100, 12345, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(100, 12545)
h.trim(4096, 1024 * 1024, nbd.CMD_FLAG_FUA)
assert h.pread(300, 12345) == bytes(100) + data[100:200] + bytes(100)
assert h.pread(4096, 1024 * 1024) == bytes(4096)
h.pwrite(b'end', size - 3)
assert h.pread(3, size - 3) == b'end'
h.flush()

buffers = [h.aio_pread(nbd.Buffer(65536), n * 65536) for n in range(64)]
while buffers:
    h.poll(-1)
    buffers = [cookie for cookie in buffers if not h.aio_command_completed(cookie)]

h.set_strict_mode(0)
def refused(errno, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == errno, (error.errno, errno)
        return
    raise AssertionError('that should have been refused')

refused('EINVAL', lambda: h.pread(512, size))
refused('ENOSPC', lambda: h.pwrite(b'x' * 512, size - 1))
refused('ENOSPC', lambda: h.zero(512, size))
refused('EINVAL', lambda: h.trim(512, size))
refused('EINVAL', lambda: h.pread(512, 0, 1 << 1))
refused('EINVAL', lambda: h.block_status(512, 0, lambda *_: None))
assert h.pread(512, 0, nbd.CMD_FLAG_DF) == h.pread(512, 0)
refused('EINVAL', lambda: h.pwrite(b'x' * 512, 0, 1 << 4))
h.cache(512, 0)
refused('EINVAL', lambda: h.cache(512, size))
h.zero(512, 4096, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(512, 4096) == bytes(512)
assert h.pread(3, size - 3) == b'end'
h.shutdown()
"#;

#[test]
fn nbdsh_reads_writes_and_is_refused() {
    let Some(nbdsh) = tool::find("nbdsh", "python3-libnbd") else { return };
    everywhere(&[], &pattern(7, 10 * MIB), |disk, endpoint| {
        tool::succeed(&nbdsh, &["-u", &endpoint.uri(""), "-c", SHELL]);
        let content = disk.content();
        assert!(content.ends_with(b"end") && content[12345..12445] == [0; 100]);
        assert_eq!(content[12445..12545], (101..=200).collect::<Vec<u8>>());
    });
}

#[test]
fn qemu_img_converts_maps_and_compares() {
    let Some(qemu_img) = tool::find("qemu-img", "qemu-utils") else { return };
    let source = Disk::holding(&image());
    let source = source.path().to_str().unwrap();
    everywhere(&[], &pattern(7, 10 * MIB), |disk, endpoint| {
        let uri = &endpoint.uri("");
        let qemu_img = |args: &[&str]| tool::succeed(&qemu_img, args);
        let info: Value = serde_json::from_str(&qemu_img(&["info", "--output=json", uri])).unwrap();
        assert_eq!(info["virtual-size"], 10 * MIB);
        let map: Value = serde_json::from_str(&qemu_img(&["map", "--output=json", uri])).unwrap();
        assert_eq!((&map[0]["length"], &map[0]["data"]), (&(10 * MIB).into(), &true.into()));

        qemu_img(&["convert", "-n", "-m", "8", "-W", "-f", "raw", "-O", "raw", source, uri]);
        assert!(disk.content() == image(), "what was converted in");
        qemu_img(&["compare", "-f", "raw", "-F", "raw", source, uri]);
        let back = disk.dir().join("back.qcow2");
        let back = back.to_str().unwrap();
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", uri, back]);
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", uri, back]);
    });
}

#[test]
fn qemu_img_keeps_a_qcow2_image_on_an_export() {
    let Some(qemu_img) = tool::find("qemu-img", "qemu-utils") else { return };
    let source = Disk::holding(&image());
    let source = source.path().to_str().unwrap();
    everywhere(&[], &vec![0; 12 * MIB], |_, endpoint| {
        let uri = &endpoint.uri("");
        tool::succeed(&qemu_img, &["create", "-f", "qcow2", uri, "10M"]);
        tool::succeed(&qemu_img, &["convert", "-n", "-f", "raw", "-O", "qcow2", source, uri]);
        tool::succeed(&qemu_img, &["check", "-f", "qcow2", uri]);
        tool::succeed(&qemu_img, &["compare", "-f", "raw", "-F", "qcow2", source, uri]);
    });
}

#[test]
fn qemu_io_writes_zeroes_discards_and_finds_its_patterns() {
    let Some(qemu_io) = tool::find("qemu-io", "qemu-utils") else { return };
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 512k 64k",
        "write -f -P 0x33 777 1000",
        "write -z 256k 64k",
        "write -z -u -f 320k 64k",
        "discard 640k 64k",
        "flush",
        "aio_write -P 0x44 2M 1M",
        "aio_write -P 0x55 3M 1M",
        "aio_flush",
        "read -P 0x11 0 777",
        "read -P 0x33 777 1000",
        "read -P 0x11 1777 64k",
        "read -P 0 256k 128k",
        "read -P 0x11 384k 128k",
        "read -P 0x22 512k 64k",
        "read -P 0 640k 64k",
        "read -P 0x44 2M 1M",
        "read -P 0x55 3M 1M",
    ];
    everywhere(&[], &pattern(7, 10 * MIB), |disk, endpoint| {
        let mut words = vec!["-f".to_owned(), "raw".into(), "-t".into(), "none".into(), endpoint.uri("")];
        words.extend(commands.iter().flat_map(|command| ["-c".into(), (*command).into()]));
        let said = tool::succeed(&qemu_io, &words);
        assert!(!said.contains("failed"), "{said}");
        assert_eq!(disk.content()[777..1777], [0x33; 1000]);
        let wrong = ["-f", "raw", "-c", "read -P 0x12 0 512", &endpoint.uri("")];
        let said = tool::run(&qemu_io, &wrong).stdout;
        assert!(said.contains("verification failed"), "a wrong pattern is noticed: {said}");
    });
}

#[test]
fn fio_verifies_what_it_wrote() {
    let Some(fio) = tool::find("fio", "fio") else { return };
    if !tool::run(&fio, &["--enghelp"]).stdout.contains("nbd") {
        return tool::skip("needs fio with its nbd engine (package fio of Debian)");
    }
    for mode in ["writethrough", "writeback", "early-ack", "unsafe"] {
        everywhere(&["--durability", mode], &vec![0; 10 * MIB], |_, endpoint| {
            let uri = format!("--uri={}", endpoint.uri(""));
            let verified = ["--verify_state_save=0", "--verify=crc32c", "--verify_fatal=1", "--fsync=64"];
            let job = |name: &str, words: &[&str]| {
                let name = format!("--name={name}");
                let common =
                    [&name, "--ioengine=nbd", &uri, "--size=8M", "--iodepth=16", "--output-format=json"];
                let said = tool::succeed(&fio, &[&common, words].concat());
                let from = said.find('{').unwrap();
                let told: Value = serde_json::from_str(&said[from..]).unwrap();
                assert_eq!(told["jobs"][0]["error"], 0, "{said}");
                told["jobs"][0].clone()
            };
            let told = job("write", &[&["--rw=randwrite", "--bs=16k"], &verified[..]].concat());
            assert_eq!(told["read"]["io_bytes"], 8 * MIB, "everything was verified");
            let told = job("trim", &["--rw=randtrim", "--bs=64k"]);
            assert_eq!(told["trim"]["io_bytes"], 8 * MIB);
        });
    }
}
