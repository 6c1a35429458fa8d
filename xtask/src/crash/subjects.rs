//! Other servers between two recorders, and ours killed: the work is done in the `tests` crate.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Due, Outcome};
use crate::run::cargo;

/// What is said of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Between { subject: String, is_honest: bool, outcome: Outcome },
    Killed { killed: String, kept: bool, said: String },
}

/// Explores them; tells of each between recorders, and fails where a killed server of ours breaks a promise.
pub(super) fn run(seconds: u64, seed: u64, tell: &mut dyn FnMut(&str, Due, &Outcome)) -> Result<()> {
    let (seconds, seed) = (seconds.to_string(), seed.to_string());
    let mut subjects = cargo();
    subjects.args(["run", "--quiet", "--package", "tests", "--bin", "subjects", "--"]);
    subjects.args(["--seconds", &seconds, "--seed", &seed]).env("NBD_TESTS_STRICT", "1");
    let out = subjects.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    for line in String::from_utf8(out.stdout)?.lines() {
        match serde_json::from_str(line).with_context(|| line.to_owned())? {
            Line::Between { subject, is_honest, outcome } => {
                tell(&subject, if is_honest { Due::Clean } else { Due::Caught }, &outcome);
            }
            Line::Killed { killed, kept, said } => {
                ensure!(kept, "nbd-server {killed}, killed: {said}");
                println!("nbd-server {killed}, killed: all that was promised is there");
            }
        }
    }
    ensure!(out.status.success(), "exploring servers failed ({})", out.status);
    Ok(())
}
