//! Proves that a row tells what is known, and no more.

use super::*;
use crate::cli::{Attach, Cli, Command};
use crate::device::Index;
use crate::event::Event;
use crate::sysfs::Sysfs;
use clap::Parser;

const BACKEND: &str = "nbd://host:10809/x#data#0123456789abcdef";

fn typed() -> Attach {
    match Cli::parse_from(["nbd-attach", "attach", "nbd://host/x"]).command {
        Command::Attach(typed) => typed,
        other => panic!("{other:?}"),
    }
}

fn tree() -> (tempfile::TempDir, Sysfs) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("pid", "1\n"),
        ("backend", BACKEND),
        ("size", "2048\n"),
        ("ro", "1\n"),
        ("inflight", "1 2\n"),
        ("queue/logical_block_size", "512\n"),
        ("queue/io_timeout", "10000\n"),
    ] {
        let path = dir.path().join("block/nbd3").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let sysfs = Sysfs::at(dir.path());
    (dir, sysfs)
}

#[test]
fn a_row_tells_what_sysfs_and_the_record_tell() {
    let (dir, sysfs) = tree();
    let (registry, device) = (Registry::at(dir.path().join("run")), sysfs.device(Index::new(3).unwrap()));
    let stranger = row(&device, &registry).unwrap();
    assert_eq!((stranger.size_bytes, stranger.read_only, &stranger.connections), (1 << 20, true, &None));
    assert_eq!((stranger.id.as_deref(), stranger.export.as_deref()), (Some("data"), Some("x")));

    let mut record: crate::registry::Record = serde_json::from_value(serde_json::json!({
        "backend": BACKEND,
        "attach": serde_json::to_value(typed()).unwrap(),
        "export": {"size_bytes": 1 << 20, "flags": 7, "block_sizes": null,
            "description": "durability=writeback epoch=00ff"},
        "cipher": null, "attached_at": now() - 200.0, "reconnected_at": null,
        "reconnects": 0, "keeper": 1, "connections": ["alive", "dead"], "ends": [], "events": [],
        "epoch": "00ff",
    }))
    .unwrap();
    record.add(device.index, Event::Dead { connection: Some(2) });
    registry.remember(&record).unwrap();
    let lock = registry.keeper(BACKEND).unwrap();
    let kept = row(&device, &registry).unwrap();
    assert_eq!((kept.keeper, kept.epoch.as_deref()), (Some(1), Some("00ff")));
    assert!(kept.flags.as_ref().unwrap().contains(&"READ_ONLY"));
    let text = table(&[kept]);
    let lines: Vec<_> = text.lines().collect();
    let words: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(words[..5], ["/dev/nbd3", "data", "1", "MiB", "ro"]);
    assert_eq!(words[5..9], ["writeback", "1/2", "1", "3"]);
    assert_eq!(lines[2], "  ! connection 2 is dead");
    assert_eq!(lines[0].find("URI"), lines[1].find("nbd://"));

    drop(lock);
    let killed = row(&device, &registry).unwrap();
    assert_eq!(killed.keeper, None);
    assert_eq!(killed.connections, Some(vec![Connection::Unknown; 2]), "nobody knows any more");
}
