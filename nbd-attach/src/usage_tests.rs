//! Proves that every user that has a name is found, by whatever it is known.

use super::*;

const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 43:1 / /mnt/my\\040disk rw,relatime - ext4 /dev/nbd0p1 rw,errors=continue
41 22 0:52 / /srv/data rw,relatime shared:9 master:2 - btrfs /nowhere/nbd0p2 rw
42 22 0:53 / /proc/x rw - proc nbd0 rw
43 22 43:32 / /other rw - xfs /dev/nbd2 rw
";

fn parts() -> Vec<Part> {
    let part = |name: &str, minor| Part { name: name.into(), number: DeviceNumber { major: 43, minor } };
    vec![part("nbd0", 0), part("nbd0p1", 1), part("nbd0p2", 2)]
}

/// A tree with these files.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn words(uses: &[Use]) -> Vec<String> {
    uses.iter().map(Use::to_string).collect()
}

#[test]
fn mounts_are_found_by_number_and_by_source() {
    let found = visible(&parts(), MOUNTINFO);
    assert_eq!(words(&found), ["mounted on /mnt/my disk", "mounted on /srv/data"]);
}

#[test]
fn mounts_of_other_namespaces_are_found_once_each() {
    let proc = tree(&[("71/mountinfo", MOUNTINFO), ("71/comm", "box\n"), ("72/mountinfo", MOUNTINFO)]);
    for (process, namespace) in [("self", "mnt:[1]"), ("70", "mnt:[1]"), ("71", "mnt:[2]"), ("72", "mnt:[2]")]
    {
        let at = proc.path().join(process).join("ns");
        fs::create_dir_all(&at).unwrap();
        std::os::unix::fs::symlink(namespace, at.join("mnt")).unwrap();
    }
    let found = words(&mounts::elsewhere(&parts(), proc.path()));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("mounted on /mnt/my disk in the mount namespace of "), "{found:?}");
}

#[test]
fn swap_is_found() {
    let swaps = "Filename\t\t\t\tType\t\tSize\n/nowhere/nbd0p2   partition 1 0 -2\n/swapfile file 1 0 -3\n";
    assert_eq!(swaps_of(&parts(), swaps), ["/nowhere/nbd0p2"]);
    assert!(swaps_of(&parts(), "").is_empty());
}

#[test]
fn users_inside_the_kernel_are_found() {
    let sys = tree(&[
        ("block/loop0/loop/backing_file", "/nowhere/nbd0p1\n"),
        ("block/loop1/loop/backing_file", "/nowhere/nbd1\n"),
        ("block/loop2/loop/backing_file", "/nowhere/nbd0 (deleted)\n"),
        ("kernel/config/nvmet/subsystems/s/namespaces/1/device_path", "/nowhere/nbd0\n"),
        ("kernel/config/target/core/iblock_0/disk/udev_path", "/nowhere/sda\n"),
        ("fs/btrfs/1234-5678/devices/nbd0p2", ""),
    ]);
    let mut found = words(&kernel::loops(&parts(), sys.path()));
    found.sort();
    assert_eq!(found, ["backs /dev/loop0", "backs /dev/loop2"]);
    let found = words(&kernel::targets(&parts(), sys.path()));
    assert!(found.len() == 1 && found[0].starts_with("served by the kernel (NVMe target, "), "{found:?}");
    assert_eq!(words(&mounts::btrfs(&parts(), sys.path())), ["part of the mounted btrfs 1234-5678"]);
}

#[test]
fn programs_are_found_by_their_open_files_and_ours_are_not() {
    let us = fs::read_to_string("/proc/self/comm").unwrap();
    let proc = tree(&[("71/comm", "qemu\n"), ("71/cmdline", "qemu\0flush\0"), ("73/comm", &us)]);
    fs::create_dir_all(proc.path().join(std::process::id().to_string())).unwrap();
    fs::write(proc.path().join(std::process::id().to_string()).join("comm"), &us).unwrap();
    fs::write(proc.path().join("73/cmdline"), "nbd-attach\0flush\0/dev/nbd0\0").unwrap();
    for (pid, target) in [
        ("71", "/nowhere/nbd0p1"),
        ("72", "/nowhere/nbd1"),
        ("self", "/nowhere/nbd0"),
        ("73", "/nowhere/nbd0"),
    ] {
        let files = proc.path().join(pid).join("fd");
        fs::create_dir_all(&files).unwrap();
        std::os::unix::fs::symlink(target, files.join("3")).unwrap();
    }
    assert_eq!(words(&programs::with_open(&parts(), proc.path())), ["open in qemu (pid 71)"]);
}
