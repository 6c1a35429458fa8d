//! Proves that a record is believed only of the attachment it was made of, and that rights end with their owner.

use super::*;
use crate::cli;
use crate::event::Event;
use crate::same::Told;
use crate::sysfs::Sysfs;
use clap::Parser;
use common::handshake::{BlockSizes, Export};
use common::proto::TransmissionFlags;

/// Two attachments, as their identifiers are.
const A: &str = "nbd://h/x#data#00000000000000aa";
const B: &str = "nbd://h/x#data#00000000000000bb";

fn typed() -> cli::Attach {
    match cli::Cli::parse_from(["nbd-attach", "attach", "nbd://h/x", "--keep", "--id", "data"]).command {
        cli::Command::Attach(typed) => typed,
        other => panic!("{other:?}"),
    }
}

fn record(backend: &str) -> Record {
    let export = Export {
        size: 4096,
        flags: TransmissionFlags::HAS_FLAGS,
        block_sizes: Some(BlockSizes { minimum: 1, preferred: 4096, maximum_payload: 1 << 25 }),
        name: None,
        description: Some("durability=writeback epoch=00ff; mine".into()),
    };
    let remembered = Remembered::from(&export);
    assert_eq!(remembered.export(), export);
    assert_eq!((remembered.word("durability"), remembered.word("mine")), (Some("writeback"), None));
    Record::new(backend, &typed(), &Told { export, epoch: Some("00ff".into()), identity: None })
}

#[test]
fn a_record_of_another_attachment_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let sysfs = Sysfs::at(dir.path().join("sys"));
    let registry = Registry::at(dir.path().join("run"));
    let device = sysfs.device(Index::new(3).unwrap());
    let block = dir.path().join("sys/block/nbd3");
    fs::create_dir_all(&block).unwrap();
    let bears = |backend: &str| fs::write(block.join("backend"), format!("{backend}\n")).unwrap();
    bears(A);
    assert!(registry.record(&device).is_none());
    registry.remember(&record(A)).unwrap();
    let found = registry.record(&device).unwrap();
    assert_eq!((found.attach.id.as_deref(), found.attach.keep), (Some("data"), true));
    bears(B);
    assert!(registry.record(&device).is_none());
    bears(A);
    fs::write(registry.file(A, "json").unwrap(), "{").unwrap();
    assert!(registry.record(&device).is_none(), "half a record");
    registry.remember(&record(B)).unwrap();
    registry.ask(Request::LetGo, B).unwrap();
    registry.forget(A);
    assert_eq!(fs::read_dir(registry.root()).unwrap().count(), 2, "a successor's");
    assert!(registry.is_asked(Request::LetGo, B) && !registry.is_asked(Request::LetGo, A));
    fs::write(registry.file(B, "77.new").unwrap(), "{").unwrap();
    registry.forget(B);
    assert_eq!(fs::read_dir(registry.root()).unwrap().count(), 0);
    assert!(registry.remember(&record("another tool's")).is_err());
}

#[test]
fn events_are_counted_and_the_oldest_forgotten() {
    let mut record = record(A);
    let index = Index::new(0).unwrap();
    for _ in 0..66 {
        record.add(index, Event::Detached);
    }
    assert_eq!((record.events.len(), record.events[0].number), (64, 3));
}

#[test]
fn one_process_at_a_time_keeps_a_device_and_anyone_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::at(dir.path().join("run"));
    assert!(!registry.is_kept(A), "looking makes nothing");
    assert!(!registry.root().exists());
    let lock = registry.keeper(A).unwrap();
    assert!(lock.is_some() && registry.keeper(A).unwrap().is_none());
    assert!(registry.is_kept(A) && !registry.is_kept(B));
    drop(lock);
    assert!(!registry.is_kept(A) && registry.keeper(A).unwrap().is_some());
}

#[test]
fn what_nobody_makes_and_no_device_bears_is_swept_away() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, registry) = (Sysfs::at(dir.path().join("sys")), Registry::at(dir.path().join("run")));
    for backend in [A, B] {
        registry.remember(&record(backend)).unwrap();
    }
    // Who was killed before he had written anything, or in the midst of it.
    for name in ["00000000000000cc.keeper", "00000000000000dd.77.new"] {
        fs::write(registry.root().join(name), "").unwrap();
    }
    fs::write(registry.root().join("data.id"), "").unwrap();
    let being_made = registry.keeper(A).unwrap();
    registry.sweep(&sysfs);
    assert!(registry.file(A, "json").unwrap().exists() && !registry.file(B, "json").unwrap().exists());
    drop(being_made);
    registry.sweep(&sysfs);
    let left: Vec<_> = fs::read_dir(registry.root()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["data.id"]);
}

/// A record that release 0.1.0 wrote, and what became of it.
const OF_0_1_0: &str = include_str!("../tests/records/0.1.0.json");

#[test]
fn the_records_of_earlier_releases_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let (sysfs, registry) = (Sysfs::at(dir.path().join("sys")), Registry::at(dir.path().join("run")));
    fs::create_dir_all(registry.root()).unwrap();
    let old: serde_json::Value = serde_json::from_str(OF_0_1_0).unwrap();
    let backend = old["backend"].as_str().unwrap();
    fs::write(registry.root().join("nbd0.json"), OF_0_1_0).unwrap();
    let device = sysfs.device(Index::new(0).unwrap());
    fs::create_dir_all(dir.path().join("sys/block/nbd0")).unwrap();
    fs::write(dir.path().join("sys/block/nbd0/backend"), backend).unwrap();
    let found = registry.record(&device).unwrap();
    assert_eq!((found.version, found.phase, found.attach.timeout), (0, Phase::Ready, Some(10)));
    assert!(found.epoch.is_some() && found.attach.keep && found.connections == [Connection::Alive]);
    assert!(!found.events.is_empty() && found.keeper.is_some());

    // Its keeper may still live.
    let theirs = open(&registry.root().join("nbd0.keeper")).unwrap();
    theirs.try_lock().unwrap();
    assert!(registry.is_kept(backend) && registry.keeper(backend).unwrap().is_none());
    drop(theirs);
    assert!(!registry.is_kept(backend) && registry.keeper(backend).unwrap().is_some());
    registry.forget(backend);
    assert!(registry.record(&device).is_none());
}

#[test]
fn what_a_later_release_adds_or_leaves_out_harms_nothing() {
    let mut json = serde_json::to_value(record(A)).unwrap();
    json["version"] = 99.into();
    json["news"] = serde_json::json!({"of": "tomorrow"});
    json["phase"] = "unheard-of".into();
    json["connections"] = serde_json::json!(["alive", "unheard-of"]);
    json["ends"] = serde_json::json!([{"carrier": "pigeon"}, null]);
    json["events"] = serde_json::json!([
        {"number": 1, "time": 2.0, "device": "/dev/nbd0", "event": "unheard-of"},
        {"number": 2, "time": 2.0, "device": "/dev/nbd0", "event": "detached", "more": 7},
    ]);
    json["attach"]["more"] = true.into();
    let record: Record = serde_json::from_value(json).unwrap();
    assert_eq!((record.version, record.phase), (99, Phase::Ready));
    assert_eq!(record.connections, [Connection::Alive, Connection::Unknown]);
    assert_eq!((record.ends.len(), record.events.len()), (2, 1));

    let least = serde_json::json!({"backend": A, "attach": {"uri": "nbd://h/x"}});
    let record: Record = serde_json::from_value(least).unwrap();
    assert_eq!((record.attach.connections, record.attach.growth_interval), (1, 30));
}
