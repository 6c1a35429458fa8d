//! Fetches the guest kernels: the newest of each series the package archive offers, because old point releases
//! vanish from mirrors. They are unpacked into the cache and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use vm_tests::kernel::{Kernel, Release, Series};

use crate::apt::Sources;
use crate::janitor::Janitor;
use crate::run::quietly;

/// Brings the newest kernel of every series into the cache.
pub(crate) fn fetch() -> Result<()> {
    for series in Series::ALL {
        fetch_series(series)?;
    }
    Ok(())
}

/// Brings the newest kernel of one series into the cache.
pub(crate) fn fetch_series(series: Series) -> Result<()> {
    let cached = Kernel::find(series);
    let (release, sources) = match newest(series) {
        Ok(found) => found,
        // Offline, or a release whose mirror dropped the series: what we have will do.
        Err(_) if cached.is_some() => return Ok(()),
        Err(error) => {
            return Err(
                error.context(format!("no Linux {series} here (package linux-image-{series}.*-cloud-amd64)"))
            );
        }
    };
    if cached.as_ref().is_some_and(|kernel| kernel.release >= release) {
        return Ok(());
    }
    eprintln!("fetching {}", release.package());
    match unpack(&release, &sources) {
        Ok(()) => Ok(()),
        Err(error) if cached.is_some() => {
            eprintln!("keeping the kernel already here: {error:#}");
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("could not fetch {}", release.package())),
    }
}

/// The newest release of a series, and where apt finds it: in the machine's own suites, or where Debian has it.
fn newest(series: Series) -> Result<(Release, Sources)> {
    if let Some(release) = newest_in(&Sources::Own, series)? {
        return Ok((release, Sources::Own));
    }
    let mut failed = None;
    for suite in series.suites() {
        let sources = Sources::with_suite(suite).or_else(|_| {
            // A new machine has no lists, and does not know its mirror.
            Sources::Own.update()?;
            Sources::with_suite(suite)
        });
        match sources {
            Ok(sources) => {
                if let Some(release) = newest_in(&sources, series)? {
                    return Ok((release, sources));
                }
            }
            // A mirror need not have all of them.
            Err(error) => failed = Some(error.context(format!("cannot look into {suite}"))),
        }
    }
    let suites = series.suites().join(" or ");
    Err(failed.unwrap_or_else(|| anyhow!("no package linux-image-{series}…-cloud-amd64 in {suites}")))
}

fn newest_in(sources: &Sources, series: Series) -> Result<Option<Release>> {
    let names = sources.names(&format!("linux-image-{series}."))?;
    Ok(names
        .iter()
        .filter_map(|name| Release::of_package(name))
        .filter(|release| release.is_of(series))
        .max())
}

/// Unpacks beside the final place and renames, so that a cache holds whole kernels or none.
fn unpack(release: &Release, sources: &Sources) -> Result<()> {
    let home = Kernel::home(release);
    let parent = home.parent().context("the kernel cache has no parent")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::tempdir_in(parent)?;
    let _janitor = Janitor::of_directory(scratch.path())?;
    let tree = scratch.path().join("tree");
    let unpack = |name: &str| -> Result<PathBuf> {
        let place = scratch.path().join(name);
        fs::create_dir_all(&place)?;
        let package = sources.download(name, &place)?;
        quietly(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&tree))?;
        Ok(package)
    };
    let depends = depends(&unpack(release.package())?)?;
    for part in release.parts(&depends) {
        unpack(part)?;
    }
    index_modules(&tree)?;
    fs::rename(&tree, &home).with_context(|| format!("cannot place {}", home.display()))?;
    Ok(())
}

/// What a package file says that it depends on.
fn depends(package: &Path) -> Result<String> {
    let answer =
        Command::new("dpkg-deb").arg("-f").arg(package).arg("Depends").output().context("dpkg-deb")?;
    Ok(String::from_utf8(answer.stdout)?)
}

/// Debian makes modules.dep when the package is installed, which we do not do.
fn index_modules(tree: &Path) -> Result<()> {
    let usr = tree.join("usr");
    let base = if usr.join("lib/modules").exists() { usr } else { tree.to_owned() };
    for version in fs::read_dir(base.join("lib/modules"))? {
        quietly(Command::new("/sbin/depmod").arg("-b").arg(&base).arg(version?.file_name()))?;
    }
    Ok(())
}
