//! Who uses a device: mounts, swap areas, block devices stacked on top of it, programs.
//!
//! Mounts are found by device number and, because btrfs mounts carry a number of their own, by
//! the source's name as well; other mount namespaces are not visible here. Programs are found by
//! their open files, as far as this process may look.

use crate::sysfs::{DeviceDir, DeviceNumber, Part};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One use of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A file system on it is mounted here.
    Mount(PathBuf),
    /// It is swapped to.
    Swap(String),
    /// Another block device lies on it.
    Holder(String),
    /// A program has it open, as virtual machines do.
    Program {
        /// Which.
        pid: u32,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Mount(point) => write!(f, "mounted on {}", point.display()),
            Use::Swap(device) => write!(f, "used as swap ({device})"),
            Use::Holder(name) => write!(f, "held by /dev/{name}"),
            Use::Program { pid, name } => write!(f, "open in {name} (pid {pid})"),
        }
    }
}

/// Everything that uses the device or a partition of it.
pub fn uses_of(device: &DeviceDir) -> io::Result<Vec<Use>> {
    let parts = device.parts()?;
    let mounts = mounts_of(&parts, &fs::read_to_string("/proc/self/mountinfo")?);
    // A kernel without swap has no such file.
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swaps = swaps_of(&parts, &swaps);
    let holders = device.holders()?.into_iter().map(Use::Holder);
    let programs = programs_of(&parts, Path::new("/proc"));
    Ok(mounts.into_iter().chain(swaps).chain(holders).chain(programs).collect())
}

/// Reads links instead of opening what they lead to, which might hang.
fn programs_of(parts: &[Part], proc: &Path) -> Vec<Use> {
    let nodes: Vec<PathBuf> = parts.iter().map(|part| Path::new("/dev").join(&part.name)).collect();
    let is_node = |file: fs::DirEntry| fs::read_link(file.path()).is_ok_and(|target| nodes.contains(&target));
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    let users = others.filter(|pid| {
        let files = fs::read_dir(proc.join(pid.to_string()).join("fd"));
        files.into_iter().flatten().flatten().any(is_node)
    });
    let named = users.map(|pid| {
        let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
        Use::Program { pid, name: name.trim_end().to_owned() }
    });
    named.collect()
}

fn mounts_of(parts: &[Part], mountinfo: &str) -> Vec<Use> {
    let on_it = mountinfo.lines().filter_map(Mount::parse).filter(|mount| mount.is_on(parts));
    on_it.map(|mount| Use::Mount(mount.point)).collect()
}

/// The fields used here of a line of mountinfo, proc_pid_mountinfo(5).
struct Mount {
    number: DeviceNumber,
    point: PathBuf,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let number = before.next()?.parse().ok()?;
        let point = PathBuf::from(unescape(before.nth(1)?));
        let source = unescape(after.split(' ').nth(1)?);
        Some(Mount { number, point, source })
    }

    fn is_on(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| part.number == self.number) || names_one_of(parts, &self.source)
    }
}

fn swaps_of(parts: &[Part], swaps: &str) -> Vec<Use> {
    let areas = swaps.lines().skip(1).filter_map(|line| Some(unescape(line.split_whitespace().next()?)));
    areas.filter(|area| names_one_of(parts, area)).map(Use::Swap).collect()
}

fn names_one_of(parts: &[Part], path: &str) -> bool {
    if !path.starts_with('/') {
        return false;
    }
    let by_name = Path::new(path).strip_prefix("/dev").ok().and_then(Path::to_str);
    let by_number = block_device_number(Path::new(path));
    parts.iter().any(|part| by_name == Some(&part.name) || by_number == Some(part.number))
}

/// The number of the block device a node leads to.
pub fn block_device_number(node: &Path) -> Option<DeviceNumber> {
    let metadata = fs::metadata(node).ok().filter(|metadata| metadata.file_type().is_block_device())?;
    let number = metadata.rdev();
    Some(DeviceNumber { major: nix::sys::stat::major(number), minor: nix::sys::stat::minor(number) })
}

/// Undoes the kernel's `\040` for bytes that would break its tables.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.filter(|_| byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 43:1 / /mnt/my\\040disk rw,relatime - ext4 /dev/nbd0p1 rw,errors=continue
41 22 0:52 / /srv/data rw,relatime shared:9 master:2 - btrfs /dev/nbd0p2 rw
42 22 0:53 / /proc/x rw - proc nbd0 rw
43 22 43:32 / /other rw - xfs /dev/nbd2 rw
";

    fn parts() -> Vec<Part> {
        let part = |name: &str, minor| Part { name: name.into(), number: DeviceNumber { major: 43, minor } };
        vec![part("nbd0", 0), part("nbd0p1", 1), part("nbd0p2", 2)]
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let found = mounts_of(&parts(), MOUNTINFO);
        assert_eq!(found, [Use::Mount("/mnt/my disk".into()), Use::Mount("/srv/data".into())]);
        assert_eq!(found[0].to_string(), "mounted on /mnt/my disk");
    }

    #[test]
    fn swap_is_found() {
        let swaps = "Filename\t\t\t\tType\t\tSize\n/dev/nbd0p2   partition 1 0 -2\n/swapfile file 1 0 -3\n";
        assert_eq!(swaps_of(&parts(), swaps), [Use::Swap("/dev/nbd0p2".into())]);
        assert_eq!(swaps_of(&parts(), ""), []);
    }

    #[test]
    fn programs_are_found_by_their_open_files() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, target) in [("71", "/dev/nbd0p1"), ("72", "/dev/nbd1"), ("self", "/dev/nbd0")] {
            let files = proc.path().join(pid).join("fd");
            fs::create_dir_all(&files).unwrap();
            fs::write(proc.path().join(pid).join("comm"), "qemu\n").unwrap();
            std::os::unix::fs::symlink(target, files.join("3")).unwrap();
        }
        let found = programs_of(&parts(), proc.path());
        assert_eq!(found, [Use::Program { pid: 71, name: "qemu".into() }]);
        assert_eq!(found[0].to_string(), "open in qemu (pid 71)");
    }

    #[test]
    fn escapes_are_undone_and_half_escapes_kept() {
        assert_eq!(unescape(r"a\040b\134c"), r"a b\c");
        for same in [r"\", r"\04", r"\999", "ü\\"] {
            assert_eq!(unescape(same), same);
        }
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(text in "[ -~\\n\\\\]{0,300}") {
            let _ = mounts_of(&parts(), &text);
            let _ = swaps_of(&parts(), &text);
        }
    }
}
