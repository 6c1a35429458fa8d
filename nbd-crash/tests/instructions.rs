//! A state costs what is new in it, however long the recording and however much of it could be lost: instructions per
//! state, far into a recording, are counted by valgrind and compared with what `instructions.json` says.
//!
//! The recording of ext4 is of a file system as `mkfs.ext4` makes it by default, whose inode tables the kernel zeroes in
//! long requests while it is used; that of xfs begins with a journal of 8 MiB that is zeroed in one.
//!
//! After a change that is meant to change them: `INSTRUCTIONS=keep cargo test -p nbd-crash --test instructions`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much worse than the baseline it may get: compilers, C libraries and processors (how they copy) differ.
const MARGIN: f64 = 0.25;
/// An oracle, a recording, and the states of the shorter and of the longer run.
const EXPLORATIONS: [(&str, &str, [u64; 2]); 2] =
    [("ext4", "ext4-1-writeback-defaults", [1500, 2000]), ("raw", "xfs-4-writeback-ordinary", [700, 1000])];

#[test]
fn states_take_no_more_instructions_than_they_did() {
    let found: BTreeMap<&str, u64> = EXPLORATIONS
        .iter()
        .map(|(oracle, recording, [short, long])| {
            let [less, more] = [short, long].map(|states| count(oracle, recording, *states));
            (*oracle, (more - less) / (long - short))
        })
        .collect();
    println!("instructions per state: {found:?}");
    let baseline = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.json");
    if env::var("INSTRUCTIONS").is_ok_and(|wish| wish == "keep") {
        let text = serde_json::to_string_pretty(&found).expect("numbers can be told") + "\n";
        return fs::write(baseline, text).expect("the baseline can be written");
    }
    let text = fs::read_to_string(baseline).expect("there is a baseline");
    let kept: BTreeMap<&str, u64> = serde_json::from_str(&text).expect("the baseline is JSON");
    assert!(kept.keys().eq(found.keys()), "the baseline is of others: {kept:?}");
    for (oracle, now) in found {
        let before = kept[oracle];
        let most = before as f64 * (1.0 + MARGIN);
        assert!((now as f64) < most, "{oracle}: {now} instructions per state, {before} before");
    }
}

/// Instructions of an exploration of so many states.
fn count(oracle: &str, recording: &str, states: u64) -> u64 {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces").join(recording);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    valgrind.args([env!("CARGO_BIN_EXE_nbd-crash"), "explore"]).arg(recording.with_extension("nbdrec.gz"));
    valgrind.args(["--oracle", oracle, "--threads", "1", "--budget", &states.to_string()]);
    let output = valgrind.output().expect("valgrind can be started (cargo xtask install)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind failed: {said}");
    let line = said.lines().find(|line| line.contains("I refs:") || line.contains("I   refs:"));
    let number = line.and_then(|line| line.rsplit(':').next()).map(|number| number.trim().replace(',', ""));
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("valgrind counted nothing: {said}"))
}
