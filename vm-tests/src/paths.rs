//! Where the harness keeps things: all under the workspace's target directory, or where the environment says.

use std::path::{Path, PathBuf};

/// The top of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// Kernels, images and scratch files; `NBD_VM_CACHE` moves it, so that several checkouts can share one.
pub fn cache() -> PathBuf {
    std::env::var_os("NBD_VM_CACHE").map_or_else(|| target().join("vm"), |dir| workspace().join(dir))
}

/// Logs of failed tests.
pub fn logs() -> PathBuf {
    target().join("vm/logs")
}
