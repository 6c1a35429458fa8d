//! Proves the language, the interpreter and the model: a workload that was carried out without a crash leaves what the
//! model demands, and whatever is changed afterwards is noticed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbd_crash::workload::model::{Contents, Found, Model};
use nbd_crash::workload::operation::{Operation, parse};
use nbd_crash::workload::run::{Marker, run};
use nbd_crash::workload::{generate, raw};
use proptest::prelude::*;
use tempfile::TempDir;

/// A workload after its last operation, all of which were promised.
fn model(operations: &[Operation]) -> Model {
    let mut model = Model::default();
    for (number, operation) in (1..).zip(operations) {
        model.hear(&format!("> {number} {operation}")).expect("the test can be set up");
        model.hear(&format!("< {number}")).expect("the test can be set up");
    }
    model
}

fn faults(model: &Model, root: &Path) -> Vec<String> {
    let look = |name: &str| match fs::metadata(root.join(name)) {
        Err(_) => Found::Absent,
        Ok(metadata) if metadata.is_dir() => Found::Directory,
        Ok(metadata) => Found::File(Contents {
            size: metadata.len(),
            data: fs::read(root.join(name)).expect("the test can be set up"),
        }),
    };
    model.names().filter_map(|name| model.judge(name, &look(name))).collect()
}

/// Where direct writes and holes are possible: not everywhere under /tmp.
fn place() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("the test can be set up")
}

fn carried_out(text: &str) -> (TempDir, Model) {
    let directory = place();
    let operations = parse(text).expect("the test can be set up");
    run(&operations, directory.path(), &mut Marker::new(None).expect("the test can be set up"))
        .expect("the test can be set up");
    (directory, model(&operations))
}

#[test]
fn what_was_carried_out_is_what_the_model_demands() {
    let (directory, model) = carried_out(include_str!("../workloads/ordinary.txt"));
    assert_eq!(faults(&model, directory.path()), [""; 0]);
}

#[test]
fn every_short_workload_can_be_carried_out() {
    let all = generate::all(1);
    assert!(all.len() > 30, "{}", all.len());
    for workload in all {
        let directory = place();
        run(&workload, directory.path(), &mut Marker::new(None).unwrap()).unwrap();
        let mut workload = workload;
        workload.push(Operation::Sync);
        assert_eq!(faults(&model(&workload), directory.path()), [""; 0], "{workload:?}");
    }
    assert!(generate::all(2).len() > 1_000);
}

#[test]
fn what_was_changed_afterwards_is_noticed() {
    let text = "create A\nwrite A 0 4\nwrite A 1 1\nfsync A\nmkdir D\ncreate D/B\nwrite D/B 0 1\nsync\n";
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("is missing", |root| fs::remove_file(root.join("A")).unwrap()),
        ("is missing", |root| fs::remove_dir_all(root.join("D")).unwrap()),
        ("has 4096 bytes", |root| {
            OpenOptions::new().write(true).open(root.join("A")).unwrap().set_len(4096).unwrap();
        }),
        ("zeroes", |root| {
            OpenOptions::new()
                .write(true)
                .open(root.join("A"))
                .unwrap()
                .write_all_at(&[0; 512], 4096)
                .unwrap();
        }),
        ("what no operation wrote", |root| {
            OpenOptions::new().write(true).open(root.join("A")).unwrap().write_all_at(&[7; 9], 9000).unwrap();
        }),
        // A stale block: what operation 2 wrote there first, in the place of what operation 3 did.
        ("operation 2 wrote to sector 0 of block 0", |root| {
            let file = OpenOptions::new().read(true).write(true).open(root.join("A")).unwrap();
            let mut block = vec![0; 4096];
            file.read_exact_at(&mut block, 0).unwrap();
            file.write_all_at(&block, 4096).unwrap();
        }),
    ];
    for (what, change) in changes {
        let (directory, model) = carried_out(text);
        change(directory.path());
        let found = faults(&model, directory.path());
        assert!(found.iter().any(|fault| fault.contains(what)), "{what}: {found:?}");
    }
}

#[test]
fn a_promise_covers_what_it_says_and_no_more() {
    let absent = |text: &str, name: &str| model(&parse(text).unwrap()).judge(name, &Found::Absent);
    assert!(absent("create A", "A").is_none(), "nobody promised it");
    assert!(absent("create A\nfsync A", "A").is_some());
    assert!(absent("create A\ndirsync /", "A").is_some());
    assert!(absent("create A\ncreate B\nfsync B", "A").is_none());
    assert!(absent("mkdir D\ncreate D/A\nfsync D/A", "D").is_some(), "what a file is in is durable with it");
    assert!(absent("create A\nfsync A\nrename A B", "A").is_none(), "it may have gone already");
    assert!(absent("create A\nfsync A\nrename A B", "B").is_none(), "and not have come yet");
    assert!(absent("create A\nfsync A\nrename A B\nfsync B", "B").is_some());
    assert!(absent("create A\nfsync A\nrename A B\nfdatasync B", "B").is_none(), "names are no data");
    let empty = |text: &str| {
        model(&parse(text).unwrap()).judge("A", &Found::File(Contents { size: 0, data: vec![] }))
    };
    assert!(empty("create A\nwrite A 0 1").is_none());
    assert!(empty("create A\nwrite A 0 1\nfdatasync A").is_some());
    assert!(empty("create A\nwrite A 0 1\nfdatasync A\ntrunc A 0").is_none());
}

#[test]
fn mistakes_are_told_with_their_line() {
    for (text, what) in [
        ("creat A", "there is no operation"),
        ("create ../A", "no path inside"),
        ("create A B", "too much"),
        ("write A 0", "a number is missing"),
        ("write A 4096 1", "at most 4096"),
        ("append A 0", "not between"),
        ("fill 0", "not between"),
        ("create noise/1", "belongs to the noise"),
    ] {
        let error = format!("{:#}", parse(&format!("# a comment\n{text}")).unwrap_err());
        assert!(error.starts_with("line 2") && error.contains(what), "{text}: {error}");
    }
    let directory = place();
    let renames = parse("mkdir D\nrename D E").unwrap();
    assert!(run(&renames, directory.path(), &mut Marker::new(None).unwrap()).is_err());
    assert!(directory.path().join("D").exists());
    let mut model = model(&renames[..1]);
    assert!(model.hear("> 2 rename D E").unwrap_err().to_string().contains("only files are renamed"));
    for wrong in ["", "X 1 1", "W", "W 1", "F 1 1", "W 0 0", "FF"] {
        assert!(wrong.parse::<raw::Line>().is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn raw_lines_are_read_as_they_were_written(seed in any::<u64>()) {
        for line in raw::random(50, 16, seed) {
            prop_assert_eq!(line.to_string().parse::<raw::Line>().unwrap(), line);
        }
    }

    #[test]
    fn lines_are_read_as_they_were_written(text in "(create|unlink|fsync|mkdir|rmdir) [A-Z]{1,3}|(write|punch) A [0-9] [1-9]") {
        let operation: Operation = text.parse().unwrap();
        prop_assert_eq!(operation.to_string(), text);
    }
}
