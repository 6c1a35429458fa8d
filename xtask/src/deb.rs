//! The Debian package: the binaries, linked statically so that it installs anywhere, and what `packaging` lays out
//! around them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use vm_tests::{guest, paths};

use crate::run::{cargo, quietly, visibly};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Without the link-time optimisation of a release, for tests.
    #[arg(long)]
    quick: bool,
}

const BINARIES: [&str; 3] = ["nbd-server", "nbd-attach", "nbd-crash"];

/// `cargo xtask deb`
pub(crate) fn run(args: &Args) -> Result<()> {
    let home = paths::target().join("deb");
    let tree = home.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(tree.join("usr/bin"))?;
    if !args.quick {
        guest::as_released();
    }
    guest::build_visibly()?;
    for binary in guest::binaries()? {
        let name = binary.file_name().context("a binary has a name")?.to_string_lossy().into_owned();
        if BINARIES.contains(&name.as_str()) {
            let stripped = tree.join("usr/bin").join(&name);
            quietly(Command::new("strip").arg("-o").arg(&stripped).arg(&binary))?;
        }
    }
    visibly(cargo().args(["run", "--quiet", "--package", "packaging", "--"]).arg(&tree))?;
    compress(&tree.join("usr/share/man/man1"))?;
    quietly(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([&tree, &home]))
        .context("dpkg-deb makes the package, so this takes a Debian machine")?;
    for entry in fs::read_dir(&home)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            println!("{}", path.display());
        }
    }
    Ok(())
}

/// As Debian has its manual pages; without a time, so that the same pages make the same package.
fn compress(pages: &Path) -> Result<()> {
    let pages = fs::read_dir(pages)?.map(|page| Ok(page?.path())).collect::<Result<Vec<_>>>()?;
    quietly(Command::new("gzip").args(["-9", "--no-name"]).args(pages))
}
