//! The guest kernels: which series are tested, and where the newest fetched one of each lies. Fetching is
//! `cargo xtask install`'s business; a test only finds.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::paths;

/// A kernel series the nbd driver is judged on: the two differ in what they send and how they reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// Debian 12's kernel: no WRITE_ZEROES, requests up to 128 KiB.
    V6_1,
    /// Debian 13's kernel, and Debian 12's backport.
    V6_12,
}

/// A released kernel package of Debian's cloud flavour. Newer releases compare greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    numbers: Vec<u32>,
    package: String,
}

/// A kernel in the cache: its image and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Which release it is.
    pub release: Release,
    tree: PathBuf,
}

impl Series {
    /// Every series, oldest first.
    pub const ALL: [Series; 2] = [Series::V6_1, Series::V6_12];

    fn numbers(self) -> [u32; 2] {
        match self {
            Series::V6_1 => [6, 1],
            Series::V6_12 => [6, 12],
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor] = self.numbers();
        write!(f, "{major}.{minor}")
    }
}

impl Release {
    /// The release in a package's name: `linux-image-6.1.0-50-cloud-amd64` or
    /// `linux-image-6.12.117+deb12-cloud-amd64`; `None` for any other package.
    pub fn of_package(name: &str) -> Option<Release> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        let numbers: Vec<u32> = version
            .split(['.', '-', '+'])
            .map(|part| part.strip_prefix("deb").unwrap_or(part).parse().ok())
            .collect::<Option<_>>()?;
        (numbers.len() > 2).then(|| Release { numbers, package: name.to_owned() })
    }

    /// The Debian package that holds it.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// True if the release belongs to `series`.
    pub fn is_of(&self, series: Series) -> bool {
        self.numbers.starts_with(&series.numbers())
    }
}

impl Kernel {
    /// The newest kernel of a series in the cache.
    pub fn find(series: Series) -> Option<Kernel> {
        let entries = fs::read_dir(home()).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let release = names
            .filter_map(|name| Release::of_package(&name))
            .filter(|release| release.is_of(series))
            .max()?;
        let tree = Kernel::home(&release);
        Some(Kernel { release, tree })
    }

    /// Where a release lies in the cache, if it does: the unpacked package.
    pub fn home(release: &Release) -> PathBuf {
        home().join(release.package())
    }

    /// The bootable image.
    pub fn image(&self) -> Option<PathBuf> {
        let mut files =
            fs::read_dir(self.tree.join("boot")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
    }

    /// The directory of its modules, named after the kernel's own version string.
    pub fn modules(&self) -> Option<PathBuf> {
        let candidates = ["usr/lib/modules", "lib/modules"].map(|place| self.tree.join(place));
        candidates.iter().find_map(|place| only_child(place))
    }
}

fn home() -> PathBuf {
    paths::cache().join("kernels")
}

fn only_child(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.find_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number_not_by_letter() {
        let parse = |name: &str| Release::of_package(name).expect(name);
        let old = parse("linux-image-6.12.99+deb12-cloud-amd64");
        let new = parse("linux-image-6.12.117+deb13-cloud-amd64");
        assert!(old < new && new.is_of(Series::V6_12) && !new.is_of(Series::V6_1));
        assert!(
            parse("linux-image-6.1.0-9-cloud-amd64") < parse("linux-image-6.1.0-50-cloud-amd64")
                && parse("linux-image-6.1.0-9-cloud-amd64").is_of(Series::V6_1)
        );
    }

    #[test]
    fn other_packages_are_no_release() {
        for name in [
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.1.0-50-amd64",
            "linux-image-6.1.0-5-rt-cloud-amd64",
        ] {
            assert_eq!(Release::of_package(name), None, "{name}");
        }
    }
}
