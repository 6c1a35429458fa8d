//! Every input that fuzzing found worth keeping still does no harm.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz::{TARGETS, Target};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Runs the target over its corpus; the input that panics is named.
fn replay(name: &str, target: Target) {
    let mut inputs: Vec<PathBuf> = fs::read_dir(corpus(name))
        .unwrap_or_else(|error| panic!("{name} has no corpus: {error}"))
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "{name}: {} inputs are no corpus", inputs.len());
    for input in inputs {
        let data = fs::read(&input).expect("it can be read");
        if let Err(panic) = std::panic::catch_unwind(|| target(&data)) {
            eprintln!("{name} fails on {}", input.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn every_input_of_every_corpus_is_harmless() {
    for (name, target) in TARGETS {
        replay(name, *target);
    }
}

#[test]
fn every_target_has_a_program_and_every_corpus_a_target() {
    let names = |dir: &str| {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).expect("it is there");
        let stem = |entry: fs::DirEntry| entry.path().file_stem().map(|it| it.to_string_lossy().into_owned());
        let mut names: Vec<String> =
            entries.filter_map(|entry| stem(entry.expect("it can be read"))).collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}
