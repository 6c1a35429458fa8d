//! Runs the programs the commands are made of: shown to the user, or silent unless they fail.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use vm_tests::guest::cargo;

/// Runs a program whose output the user is to see.
pub(crate) fn visibly(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// Runs a program whose output matters only if it fails, and is then part of the error.
pub(crate) fn quietly(command: &mut Command) -> Result<()> {
    let name = name(command);
    let out = command.output().with_context(|| format!("cannot run {name}"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    bail!("{name} failed ({}): {}", out.status, said.trim())
}

/// What the user knows the program by: not the "sudo" or "env" before it.
fn name(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut words =
        std::iter::once(program).chain(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    let helper = |word: &String| word == "sudo" || word == "env" || word == "-n" || word.contains('=');
    words.find(|word| !helper(word)).unwrap_or_default()
}
