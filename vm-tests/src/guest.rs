//! Our own programs as the guest runs them: linked statically, because an initramfs has no libraries. Built on
//! demand, into a target directory of their own so that the ordinary build stays warm. The harness's one program
//! for the host is built here as well, because a library cannot rely on its package's programs being there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::paths;

const GUEST: &[&str] =
    &["nbd-server", "nbd-attach", "nbd-crash", "promise", "exercise", "failing-disk", "kill-at"];
const RELAY: &str = "vm-relay";
/// Naming the target keeps the flags away from build scripts and procedural macros, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs for the guest, built at most once per process.
pub fn binaries() -> Result<Vec<PathBuf>> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    build_once(&BUILT, GUEST)?;
    Ok(GUEST.iter().map(|program| built(program)).collect())
}

/// Builds the programs for the guest under the eyes of a user, who sees cargo's progress; [`binaries`] then finds
/// nothing left to do.
pub fn build_visibly() -> Result<()> {
    let directory = home();
    fs::create_dir_all(&directory)?;
    let status = cargo_build(GUEST, &directory).status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed ({status})");
    Ok(())
}

/// One of them for this machine: what is linked statically runs anywhere.
pub fn host_program(name: &str) -> Result<PathBuf> {
    binaries()?;
    Ok(built(name))
}

/// The program that QEMU joins connections to the host with.
pub(crate) fn relay() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    build_once(&BUILT, &[RELAY])?;
    Ok(built(RELAY))
}

/// An error is kept as text: every test that needs the programs is to fail with it.
fn build_once(once: &OnceLock<Result<(), String>>, programs: &[&str]) -> Result<()> {
    once.get_or_init(|| build(programs).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn built(program: &str) -> PathBuf {
    home().join(TARGET).join(profile()).join(program)
}

static AS_RELEASED: OnceLock<()> = OnceLock::new();

/// From now on they are built as for a release, which takes a minute longer: to be measured or packaged.
pub fn as_released() {
    AS_RELEASED.get_or_init(|| ());
}

fn profile() -> &'static str {
    if AS_RELEASED.get().is_some() { "release" } else { "guest" }
}

fn home() -> PathBuf {
    paths::target().join("guest")
}

fn build(programs: &[&str]) -> Result<()> {
    let directory = home();
    fs::create_dir_all(&directory)?;
    let turn = File::create(directory.join("build.lock"))?;
    turn.lock()?;
    let out = cargo_build(programs, &directory).arg("--quiet").output().context("cannot run cargo")?;
    ensure!(out.status.success(), "static build failed:\n{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

fn cargo_build(programs: &[&str], directory: &Path) -> Command {
    let mut cargo = cargo();
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--profile", profile(), "--target", TARGET, "--target-dir"]).arg(directory);
    for program in programs {
        cargo.args(["--bin", program]);
    }
    cargo
}

/// The cargo that runs us, in the workspace. What it says to us about our own package is kept from it: there are build
/// scripts that look at that, and whatever depends on them would be built anew each time it changes.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace());
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}
