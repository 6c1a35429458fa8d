//! Our own programs as the guest runs them: linked statically, because an initramfs has no libraries. Built on
//! demand, into a target directory of their own so that the ordinary build stays warm.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::paths;

const PROGRAMS: [&str; 2] = ["nbd-server", "nbd-attach"];
/// Naming the target keeps the flags away from build scripts and procedural macros, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The static programs, built at most once per process.
pub fn binaries() -> Result<Vec<PathBuf>> {
    static BUILT: OnceLock<Result<Vec<PathBuf>, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn build() -> Result<Vec<PathBuf>> {
    let directory = paths::target().join("guest");
    fs::create_dir_all(&directory)?;
    let turn = File::create(directory.join("build.lock"))?;
    turn.lock()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--quiet", "--release", "--target", TARGET, "--target-dir"]).arg(&directory);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    let out = cargo.output().context("cannot run cargo")?;
    ensure!(out.status.success(), "static build failed:\n{}", String::from_utf8_lossy(&out.stderr));
    let made = directory.join(TARGET).join("release");
    Ok(PROGRAMS.iter().map(|program| made.join(program)).collect())
}
