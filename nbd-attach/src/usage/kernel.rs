//! Users inside the kernel, which make no claim, have no descriptor and need not appear among the holders.

use super::{Use, names_one_of};
use crate::sysfs::Part;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel's servers of block devices say what they serve: a directory in which `*` stands for anything, and a
/// file with a path.
const TARGETS: [(&str, &str, &str); 3] = [
    ("NVMe target", "kernel/config/nvmet/subsystems/*/namespaces/*", "device_path"),
    ("LIO", "kernel/config/target/core/*/*", "udev_path"),
    ("zram", "block/zram*", "backing_dev"),
];

/// Loop devices that lead to the device.
pub(super) fn loops(parts: &[Part], sys: &Path) -> Vec<Use> {
    let leads = |device: &PathBuf| names(parts, &device.join("loop/backing_file"));
    let devices = matching(sys, "block/loop*").into_iter().filter(leads);
    devices.filter_map(|device| Some(Use::Loop(device.file_name()?.to_string_lossy().into_owned()))).collect()
}

/// What else in the kernel says that it uses the device.
pub(super) fn targets(parts: &[Part], sys: &Path) -> Vec<Use> {
    let mut found = Vec::new();
    for (kind, directory, file) in TARGETS {
        let of_it = matching(sys, directory).into_iter().filter(|place| names(parts, &place.join(file)));
        found.extend(of_it.map(|place| Use::Target(format!("{kind}, {}", place.display()))));
    }
    found
}

/// Whether a file holds the path of the device. The kernel adds to that of a deleted node that it is deleted.
fn names(parts: &[Part], file: &Path) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let path = text.trim_end_matches('\n');
    names_one_of(parts, Path::new(path.strip_suffix(" (deleted)").unwrap_or(path)))
}

/// The directories that a pattern means; each part of it may end with `*`.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').fold(vec![root.to_owned()], |places, part| {
        let Some(prefix) = part.strip_suffix('*') else {
            return places.into_iter().map(|place| place.join(part)).collect();
        };
        let inside = places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
        let fits = inside.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        fits.map(|entry| entry.path()).collect()
    })
}
