//! Programs that have a device open, as far as this process may look.

use super::{Process, Use, names_one_of};
use crate::bounded::HELPERS;
use crate::sysfs::Part;
use std::fs;
use std::path::Path;

/// The numbers of all processes.
pub(super) fn all(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What a process is called.
pub(super) fn name(proc: &Path, pid: u32) -> String {
    let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Programs with the device or a partition of it open; ours are none.
pub(super) fn with_open(parts: &[Part], proc: &Path) -> Vec<Use> {
    let others = all(proc).into_iter().filter(|pid| *pid != std::process::id());
    let users = others.filter(|pid| has_open(parts, proc, *pid) && !is_helper(proc, *pid));
    users.map(|pid| Use::Program(Process { pid, name: name(proc, pid) })).collect()
}

/// Opens nothing, and looks closer only at what is called like the device: anything else might hang.
fn has_open(parts: &[Part], proc: &Path, pid: u32) -> bool {
    let files = fs::read_dir(proc.join(pid.to_string()).join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let named =
            target.file_name().is_some_and(|name| parts.iter().any(|part| name == part.name.as_str()));
        named && names_one_of(parts, &target)
    })
}

/// A process of this tool that waits for the device in the place of another one.
fn is_helper(proc: &Path, pid: u32) -> bool {
    let process = proc.join(pid.to_string());
    let words = fs::read(process.join("cmdline")).unwrap_or_default();
    let command = words.split(|byte| *byte == 0).nth(1).unwrap_or_default();
    HELPERS.iter().any(|helper| helper.as_bytes() == command)
        && name(proc, pid) == name(proc, std::process::id())
}
