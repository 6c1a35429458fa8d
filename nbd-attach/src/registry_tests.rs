//! Proves that a record is believed only of the attachment it was made of, and that rights end with their owner.

use super::*;
use crate::sysfs::Sysfs;
use clap::Parser;

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
    assert_eq!((remembered.told("epoch"), remembered.told("mine")), (Some("00ff"), None));
    Record {
        backend: backend.into(),
        attach: typed(),
        export: remembered,
        cipher: None,
        attached_at: 1.0,
        reconnected_at: None,
        reconnects: 0,
        keeper: None,
        connections: vec![Connection::Alive],
        ends: vec![None],
        events: vec![],
    }
}

#[test]
fn a_record_of_another_attachment_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let sysfs = Sysfs::at(dir.path().join("sys"));
    let registry = Registry::at(dir.path().join("run"));
    let device = sysfs.device(Index::new(3).unwrap());
    let block = dir.path().join("sys/block/nbd3");
    fs::create_dir_all(&block).unwrap();
    fs::write(block.join("backend"), "a\n").unwrap();
    assert!(registry.record(&device).is_none());
    registry.remember(device.index, &record("a")).unwrap();
    let found = registry.record(&device).unwrap();
    assert_eq!((found.attach.id.as_deref(), found.attach.keep), (Some("data"), true));
    fs::write(block.join("backend"), "b\n").unwrap();
    assert!(registry.record(&device).is_none());
    fs::write(block.join("backend"), "a\n").unwrap();
    fs::write(registry.file(device.index, "json"), "{").unwrap();
    assert!(registry.record(&device).is_none(), "half a record");
    registry.remember(device.index, &record("b")).unwrap();
    registry.ask_to_let_go(device.index, "b").unwrap();
    registry.forget(device.index, "a");
    assert_eq!(fs::read_dir(registry.root()).unwrap().count(), 2, "a successor's");
    assert!(registry.is_to_let_go(device.index, "b") && !registry.is_to_let_go(device.index, "a"));
    registry.forget(device.index, "b");
    assert_eq!(fs::read_dir(registry.root()).unwrap().count(), 0);
}

#[test]
fn events_are_counted_and_the_oldest_forgotten() {
    let mut record = record("a");
    let index = Index::new(0).unwrap();
    for _ in 0..EVENTS_MAX + 2 {
        record.add(index, Event::Detached);
    }
    assert_eq!((record.events.len(), record.events[0].number), (EVENTS_MAX, 3));
}

#[test]
fn one_process_at_a_time_keeps_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::at(dir.path().join("run"));
    let index = Index::new(0).unwrap();
    let lock = registry.keeper(index).unwrap();
    assert!(lock.is_some() && registry.keeper(index).unwrap().is_none());
    drop(lock);
    assert!(registry.keeper(index).unwrap().is_some());
}
