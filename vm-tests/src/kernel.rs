//! The guest kernels: which series are tested, and where the newest fetched one of each lies. Fetching is
//! `cargo xtask install`'s business; a test only finds.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::paths;

/// A kernel series the nbd driver is judged on: they differ in what they send, how they reconnect and how they resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// Debian 12's kernel: no WRITE_ZEROES, requests up to 128 KiB.
    V6_1,
    /// Debian 13's kernel, and Debian 12's backport.
    V6_12,
    /// The newest 7.x, from Debian 13's backports.
    V7,
}

/// A released kernel package of Debian's cloud flavour. Newer releases compare greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    upstream: Vec<u32>,
    revision: Vec<u32>,
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
    pub const ALL: [Series; 3] = [Series::V6_1, Series::V6_12, Series::V7];

    /// The Debian suites that have it, besides the machine's own.
    pub fn suites(self) -> &'static [&'static str] {
        match self {
            Series::V6_1 | Series::V6_12 => &["bookworm"],
            Series::V7 => &["trixie-backports", "sid"],
        }
    }

    fn numbers(self) -> &'static [u32] {
        match self {
            Series::V6_1 => &[6, 1],
            Series::V6_12 => &[6, 12],
            Series::V7 => &[7],
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.numbers().iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

impl Release {
    /// The release in a package's name: `linux-image-6.1.0-50-cloud-amd64`, `linux-image-7.3.4+deb13-cloud-amd64`
    /// or `linux-image-7.3+deb14-cloud-amd64`; `None` for any other package.
    pub fn of_package(name: &str) -> Option<Release> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        let numbers =
            |text: &str| text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
        let (upstream, revision) = version.split_once("+deb").or_else(|| version.split_once('-'))?;
        let (upstream, revision) = (numbers(upstream)?, numbers(revision)?);
        Some(Release { upstream, revision, package: name.to_owned() })
    }

    /// The Debian package that holds it.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// True if the release belongs to `series`.
    pub fn is_of(&self, series: Series) -> bool {
        self.upstream.starts_with(series.numbers())
    }

    /// Those of a package's dependencies that hold parts of the same release: from 7.x on the image package is empty.
    pub fn parts<'d>(&self, depends: &'d str) -> Vec<&'d str> {
        let version = self.package.trim_start_matches("linux-image");
        let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
        names.filter(|name| name.starts_with("linux-") && name.ends_with(version)).collect()
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

    /// Where a release lies in the cache, if it does: its unpacked packages.
    pub fn home(release: &Release) -> PathBuf {
        home().join(release.package())
    }

    /// The bootable image: in `/boot`, or from 7.x on with the modules.
    pub fn image(&self) -> Option<PathBuf> {
        let beside_modules = self.modules().map(|modules| modules.join("vmlinuz")).filter(|it| it.exists());
        beside_modules.or_else(|| {
            let files = fs::read_dir(self.tree.join("boot")).ok()?;
            let mut files = files.filter_map(|entry| Some(entry.ok()?.path()));
            files.find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
            })
        })
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
        let first = parse("linux-image-7.3+deb14-cloud-amd64");
        let mended = parse("linux-image-7.3.4+deb13.1-cloud-amd64");
        assert!(first < mended && first.is_of(Series::V7) && !first.is_of(Series::V6_1));
        assert!(parse("linux-image-7.3.4+deb13-cloud-amd64") < mended);
    }

    #[test]
    fn an_empty_package_names_those_that_are_not() {
        let release = Release::of_package("linux-image-7.3.4+deb13-cloud-amd64").unwrap();
        let depends = "dracut | initramfs-tools (>= 0.120), linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1), \
                       linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-cloud-amd64";
        let parts = ["base", "binary", "modules"].map(|part| format!("linux-{part}-7.3.4+deb13-cloud-amd64"));
        assert_eq!(release.parts(depends), parts);
        assert_eq!(release.parts("kmod, linux-base (>= 4.3~), initramfs-tools"), [""; 0]);
    }

    #[test]
    fn other_packages_are_no_release() {
        for name in [
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.1.0-50-amd64",
            "linux-image-6.1.0-5-rt-cloud-amd64",
            "linux-image-7.3~rc5-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64-dbg",
        ] {
            assert_eq!(Release::of_package(name), None, "{name}");
        }
    }
}
