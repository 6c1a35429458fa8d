//! Who uses a device: mounts, swap areas, block devices stacked on top of it, the kernel's own servers, programs.
//!
//! Nobody has to say that he uses a device. What is found here has a name; what is not found, [`crate::detach`] still
//! notices, because the driver knows whether anybody has the device open.

mod kernel;
mod mounts;
mod programs;

use crate::sysfs::{DeviceDir, DeviceNumber, Part};
use mounts::{swaps_of, visible};
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
    /// A file system on it is mounted where only some processes see it, as in a container.
    MountElsewhere {
        /// Where, as those processes see it.
        point: PathBuf,
        /// One of them.
        process: Process,
    },
    /// It belongs to a mounted btrfs, by its UUID.
    Btrfs(String),
    /// It is swapped to.
    Swap(String),
    /// Another block device lies on it.
    Holder(String),
    /// A loop device leads to it.
    Loop(String),
    /// The kernel itself serves it to others.
    Target(String),
    /// A program has it open, as virtual machines do.
    Program(Process),
}

/// A process, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Which.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Mount(point) => write!(f, "mounted on {}", point.display()),
            Use::MountElsewhere { point, process } => {
                write!(f, "mounted on {} in the mount namespace of {process}", point.display())
            }
            Use::Btrfs(uuid) => write!(f, "part of the mounted btrfs {uuid}"),
            Use::Swap(device) => write!(f, "used as swap ({device})"),
            Use::Holder(name) => write!(f, "held by /dev/{name}"),
            Use::Loop(name) => write!(f, "backs /dev/{name}"),
            Use::Target(name) => write!(f, "served by the kernel ({name})"),
            Use::Program(process) => write!(f, "open in {process}"),
        }
    }
}

impl Use {
    fn is_copied_by(&self, other: &Use) -> bool {
        matches!((self, other), (Use::Mount(here), Use::MountElsewhere { point, .. }) if here == point)
    }
}

/// Everything known that uses the device or a partition of it.
///
/// # Errors
/// The kernel does not show the device or the mounts.
pub fn uses_of(device: &DeviceDir) -> io::Result<Vec<Use>> {
    let parts = device.parts()?;
    let (sys, proc) = (Path::new("/sys"), Path::new("/proc"));
    let mut uses = visible(&parts, &fs::read_to_string("/proc/self/mountinfo")?);
    let hidden = mounts::elsewhere(&parts, proc).into_iter();
    // Most namespaces have copies of what is mounted here.
    let hidden: Vec<Use> = hidden.filter(|used| !uses.iter().any(|seen| seen.is_copied_by(used))).collect();
    uses.extend(hidden);
    uses.extend(mounts::btrfs(&parts, sys));
    // A kernel without swap has no such file.
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    uses.extend(swaps_of(&parts, &swaps).into_iter().map(Use::Swap));
    uses.extend(device.holders()?.into_iter().map(Use::Holder));
    uses.extend(kernel::loops(&parts, sys));
    uses.extend(kernel::targets(&parts, sys));
    uses.extend(programs::with_open(&parts, proc));
    Ok(uses)
}

/// What the kernel makes when the device is mounted or built upon, with a number that no other time has. While these are
/// the same, the device has been in use all the time.
#[must_use]
pub fn marks(device: &DeviceDir, sys: &Path) -> Vec<(PathBuf, u64)> {
    let parts = device.parts().unwrap_or_default();
    let of_part = |part: &Part| ["ext4", "xfs"].map(|kind| sys.join("fs").join(kind).join(&part.name));
    let systems = parts.iter().flat_map(of_part);
    let holders = device.holder_links().unwrap_or_default();
    let number = |path: PathBuf| path.symlink_metadata().ok().map(|metadata| (path, metadata.ino()));
    systems.chain(holders).filter_map(number).collect()
}

/// Whether a path leads to the device or a partition of it. Where it leads nowhere, as one of another mount
/// namespace may, its last part has to do.
fn names_one_of(parts: &[Part], path: &Path) -> bool {
    if !path.is_absolute() {
        return false;
    }
    match fs::metadata(path) {
        Ok(_) => {
            block_device_number(path).is_some_and(|number| parts.iter().any(|part| part.number == number))
        }
        Err(_) => path.file_name().is_some_and(|name| parts.iter().any(|part| name == part.name.as_str())),
    }
}

/// The number of the block device a node leads to.
pub fn block_device_number(node: &Path) -> Option<DeviceNumber> {
    let metadata = fs::metadata(node).ok().filter(|metadata| metadata.file_type().is_block_device())?;
    let number = metadata.rdev();
    Some(DeviceNumber { major: nix::sys::stat::major(number), minor: nix::sys::stat::minor(number) })
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
