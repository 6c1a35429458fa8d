//! Enumerates workloads: every sequence of a few operations on two files, each followed by each way of making it
//! durable, after the idea of bounded black-box testing (CrashMonkey's ACE, OSDI 2018).

use super::operation::{Blocks, Operation};

/// What is done before: two files with promised content.
fn before() -> Vec<Operation> {
    let mut all = Vec::new();
    for name in ["A", "B"] {
        all.push(Operation::Create(name.to_owned()));
        all.push(Operation::Write(name.to_owned(), Blocks { first: 0, count: 4 }));
    }
    all.push(Operation::Sync);
    all
}

/// What may be done.
fn steps() -> Vec<Operation> {
    let (a, b) = (|| "A".to_owned(), || "B".to_owned());
    let blocks = |first, count| Blocks { first, count };
    vec![
        Operation::Create("C".to_owned()),
        Operation::Write(a(), blocks(1, 2)),
        Operation::Append(a(), 2),
        Operation::DirectWrite(a(), blocks(0, 1)),
        Operation::Rename(a(), b()),
        Operation::Rename(a(), "C".to_owned()),
        Operation::Link(a(), "C".to_owned()),
        Operation::Unlink(b()),
        Operation::MakeDirectory("D".to_owned()),
        Operation::Truncate(a(), 1),
        Operation::Punch(a(), blocks(1, 2)),
        Operation::Zero(a(), blocks(2, 4)),
    ]
}

/// How it may be made durable.
fn promises() -> Vec<Operation> {
    let name = |name: &str| name.to_owned();
    vec![
        Operation::Fsync(name("A")),
        Operation::Fdatasync(name("A")),
        Operation::Fsync(name("C")),
        Operation::DirectorySync(name("/")),
        Operation::Sync,
    ]
}

/// Every workload of `length` steps, each with each promise after it, that can be carried out.
pub fn all(length: usize) -> Vec<Vec<Operation>> {
    let mut sequences = vec![before()];
    for _ in 0..length {
        let mut longer = Vec::new();
        for so_far in &sequences {
            for step in steps() {
                for promise in promises() {
                    let mut sequence = so_far.clone();
                    sequence.extend([step.clone(), promise]);
                    longer.push(sequence);
                }
            }
        }
        longer.retain(|sequence| is_possible(sequence));
        sequences = longer;
    }
    sequences
}

/// Whether every operation finds what it needs and nothing in its way.
fn is_possible(sequence: &[Operation]) -> bool {
    let mut names = std::collections::BTreeSet::new();
    sequence.iter().all(|operation| match operation {
        Operation::Create(path) | Operation::MakeDirectory(path) => names.insert(path.clone()),
        Operation::Rename(from, to) => {
            let there = names.remove(from);
            names.insert(to.clone());
            there
        }
        Operation::Link(from, to) => names.contains(from) && names.insert(to.clone()),
        Operation::Unlink(path) | Operation::RemoveDirectory(path) => names.remove(path),
        Operation::Write(path, _)
        | Operation::Append(path, _)
        | Operation::DirectWrite(path, _)
        | Operation::Truncate(path, _)
        | Operation::Punch(path, _)
        | Operation::Zero(path, _)
        | Operation::Fsync(path)
        | Operation::Fdatasync(path) => names.contains(path),
        Operation::DirectorySync(_)
        | Operation::Sync
        | Operation::Fill(_)
        | Operation::Noise(_)
        | Operation::Mark(_) => true,
    })
}
