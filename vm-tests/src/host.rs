//! What the machine the tests run on has: programs, and the shared libraries they need in the guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The file of a program, looked for also where an ordinary user's PATH does not reach.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    // The system's own first: a wrapper in a home directory would not run in the guest.
    system
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The shared libraries a program or plugin loads, the dynamic loader included; empty for a static one.
pub(crate) fn shared_libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(file).output().context("cannot run ldd")?;
    // Lines read "name => /path (0x…)" or "/path (0x…)"; ldd fails on a static file, which needs none.
    let text = String::from_utf8_lossy(&out.stdout);
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
