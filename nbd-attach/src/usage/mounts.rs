//! Mounts and swap areas: what the kernel's tables say of a device.

use super::{Process, Use, names_one_of};
use crate::sysfs::{DeviceNumber, Part};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The mounts that this process sees.
pub(super) fn visible(parts: &[Part], mountinfo: &str) -> Vec<Use> {
    mounts_of(parts, mountinfo).into_iter().map(Use::Mount).collect()
}

/// The mounts that only other mount namespaces see, each namespace asked once.
pub(super) fn elsewhere(parts: &[Part], proc: &Path) -> Vec<Use> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut known: BTreeSet<PathBuf> = namespace(&proc.join("self")).into_iter().collect();
    let mut found = Vec::new();
    for pid in super::programs::all(proc) {
        let process = proc.join(pid.to_string());
        if !namespace(&process).is_some_and(|space| known.insert(space)) {
            continue;
        }
        let Ok(mountinfo) = fs::read_to_string(process.join("mountinfo")) else { continue };
        for point in mounts_of(parts, &mountinfo) {
            let process = Process { pid, name: super::programs::name(proc, pid) };
            found.push(Use::MountElsewhere { point, process });
        }
    }
    found
}

/// The mounted btrfs that a device is part of: its mounts name only one of its devices.
pub(super) fn btrfs(parts: &[Part], sys: &Path) -> Vec<Use> {
    let systems = fs::read_dir(sys.join("fs/btrfs")).into_iter().flatten().flatten();
    let of_it = systems.filter(|system| {
        parts.iter().any(|part| system.path().join("devices").join(&part.name).symlink_metadata().is_ok())
    });
    of_it.map(|system| Use::Btrfs(system.file_name().to_string_lossy().into_owned())).collect()
}

/// Mounts are found by device number and, because btrfs mounts carry a number of their own, by the source's name as
/// well.
fn mounts_of(parts: &[Part], mountinfo: &str) -> Vec<PathBuf> {
    let on_it = mountinfo.lines().filter_map(Mount::parse).filter(|mount| mount.is_on(parts));
    on_it.map(|mount| mount.point).collect()
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
        parts.iter().any(|part| part.number == self.number) || names_one_of(parts, Path::new(&self.source))
    }
}

/// The swap areas on the device.
pub(super) fn swaps_of(parts: &[Part], swaps: &str) -> Vec<String> {
    let areas = swaps.lines().skip(1).filter_map(|line| Some(unescape(line.split_whitespace().next()?)));
    areas.filter(|area| names_one_of(parts, Path::new(area))).collect()
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
            let _ = visible(&[], &text);
            let _ = swaps_of(&[], &text);
        }
    }
}
