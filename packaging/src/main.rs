//! `packaging TREE`: lays out, below a directory, all that a system needs beside the binaries.
//!
//! ```text
//!  TREE/usr/share/man/man1           a page per command and subcommand
//!  TREE/usr/share/…completions       for bash, zsh and fish
//!  TREE/usr/lib/systemd/system       nbd-server.service, nbd-attach@.service
//!  TREE/usr/lib/systemd/system-generators    nbd-attach under another name
//!  TREE/usr/lib/udev/rules.d         names that stay
//!  TREE/etc                          what an operator fills in
//!  TREE/DEBIAN                       what dpkg wants to know
//! ```

mod debian;
mod pages;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

/// Lays out, below a directory, all that a system needs beside the binaries.
#[derive(Parser)]
struct Cli {
    /// The directory; what is in it stays.
    tree: PathBuf,
}

/// Files as they are, by where they go.
const FILES: [(&str, &str); 5] = [
    ("usr/lib/systemd/system/nbd-attach@.service", include_str!("../systemd/nbd-attach@.service")),
    ("usr/lib/systemd/system/nbd-server.service", include_str!("../systemd/nbd-server.service")),
    ("usr/lib/udev/rules.d/60-nbd-attach.rules", include_str!("../60-nbd-attach.rules")),
    ("etc/nbd-attach.tab", include_str!("../nbd-attach.tab")),
    ("etc/nbd-server.toml", include_str!("../nbd-server.toml")),
];
/// systemd knows generators by where they are, and ours by its name.
const GENERATOR: (&str, &str) =
    ("usr/lib/systemd/system-generators/nbd-attach-generator", "../../../bin/nbd-attach");

fn main() -> Result<()> {
    let tree = Cli::parse().tree;
    for (path, text) in FILES {
        put(&tree, path, text.as_bytes())?;
    }
    let (path, target) = GENERATOR;
    let link = tree.join(path);
    create_parent(&link)?;
    symlink(target, &link).with_context(|| format!("cannot make {}", link.display()))?;
    for mut command in
        [nbd_server::cli::Cli::command(), nbd_attach::cli::Cli::command(), nbd_crash::cli::Cli::command()]
    {
        pages::manual(&tree, &command)?;
        pages::completions(&tree, &mut command)?;
    }
    debian::control(&tree)
}

/// Writes a file below the tree.
fn put(tree: &Path, path: &str, contents: &[u8]) -> Result<()> {
    let file = tree.join(path);
    create_parent(&file)?;
    fs::write(&file, contents).with_context(|| format!("cannot write {}", file.display()))
}

fn create_parent(of: &Path) -> Result<()> {
    let parent = of.parent().context("a path below the tree has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
}
