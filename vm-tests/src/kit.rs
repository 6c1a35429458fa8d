//! Kits: groups of host programs a guest can be given. A test names the kits it needs; they decide whether it can
//! run here and what goes into its image, which stays small because nothing else does.

use std::path::PathBuf;

use crate::host;

/// A group of programs for the guest, or one needed beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kit {
    /// mkfs.ext4, e2fsck, dumpe2fs.
    Ext4,
    /// mkfs.xfs, xfs_repair.
    Xfs,
    /// mkfs.btrfs.
    Btrfs,
    /// Debian's nbd-client.
    NbdClient,
    /// nbdkit with its memory, file and nbd plugins, and a few filters.
    Nbdkit,
    /// qemu-nbd; big.
    QemuNbd,
    /// fio; very big.
    Fio,
    /// strace.
    Strace,
    /// dmsetup.
    Dmsetup,
    /// losetup, as busybox's knows less.
    Losetup,
    /// What lays volumes on block devices: mdadm, cryptsetup, LVM.
    Volumes,
    /// systemd and udev, as much of them as mounts need.
    Systemd,
    /// dpkg.
    Dpkg,
    /// Our nbd-server and nbd-attach, and the programs of the tests, linked statically.
    Ours,
    /// A program on the host, not put into the guest.
    Host(&'static str),
}

const NBDKIT_PARTS: &[&str] = &[
    "plugins/nbdkit-memory-plugin.so",
    "plugins/nbdkit-file-plugin.so",
    "plugins/nbdkit-nbd-plugin.so",
    "plugins/nbdkit-null-plugin.so",
    "filters/nbdkit-delay-filter.so",
    "filters/nbdkit-error-filter.so",
    "filters/nbdkit-log-filter.so",
    "filters/nbdkit-pause-filter.so",
];

/// Below /lib.
const SYSTEMD_PARTS: &[&str] = &[
    "systemd/systemd",
    "systemd/systemd-shutdown",
    "systemd/system-generators/systemd-fstab-generator",
    "systemd/system/basic.target",
    "systemd/system/final.target",
    "systemd/system/local-fs-pre.target",
    "systemd/system/local-fs.target",
    "systemd/system/multi-user.target",
    "systemd/system/network-online.target",
    "systemd/system/network.target",
    "systemd/system/poweroff.target",
    "systemd/system/remote-fs-pre.target",
    "systemd/system/remote-fs.target",
    "systemd/system/shutdown.target",
    "systemd/system/sockets.target",
    "systemd/system/swap.target",
    "systemd/system/sysinit.target",
    "systemd/system/systemd-poweroff.service",
    "systemd/system/systemd-udevd-control.socket",
    "systemd/system/systemd-udevd-kernel.socket",
    "systemd/system/umount.target",
    "udev/rules.d/50-udev-default.rules",
    "udev/rules.d/60-block.rules",
    "udev/rules.d/60-persistent-storage.rules",
    "udev/rules.d/99-systemd.rules",
];

impl Kit {
    /// Programs the guest gets, by name.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Kit::Ext4 => &["mkfs.ext4", "e2fsck", "dumpe2fs"],
            Kit::Xfs => &["mkfs.xfs", "xfs_repair"],
            Kit::Btrfs => &["mkfs.btrfs"],
            Kit::NbdClient => &["nbd-client"],
            Kit::Nbdkit => &["nbdkit"],
            Kit::QemuNbd => &["qemu-nbd"],
            Kit::Fio => &["fio"],
            Kit::Strace => &["strace"],
            Kit::Dmsetup => &["dmsetup"],
            Kit::Losetup => &["losetup"],
            Kit::Volumes => &["mdadm", "cryptsetup", "lvm"],
            // What busybox mounts is forgotten to be of the network.
            Kit::Systemd => &["systemctl", "udevadm", "mount", "umount"],
            Kit::Dpkg => &["dpkg", "dpkg-deb", "dpkg-split", "dpkg-query", "tar"],
            Kit::Ours | Kit::Host(_) => &[],
        }
    }

    /// Other files the guest gets, at their own paths.
    pub(crate) fn files(self) -> Vec<PathBuf> {
        match self {
            Kit::Nbdkit => nbdkit_parts(),
            Kit::Ext4 => vec![PathBuf::from("/etc/mke2fs.conf")],
            Kit::Systemd => SYSTEMD_PARTS.iter().map(|part| PathBuf::from("/lib").join(part)).collect(),
            _ => Vec::new(),
        }
    }

    /// The program whose absence makes the kit unusable here.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Kit::Host(name) => host::program(name).is_none().then_some(name),
            Kit::Systemd if self.files().iter().any(|file| !file.exists()) => {
                Some("systemd as Debian has it")
            }
            _ => self.programs().iter().copied().find(|name| host::program(name).is_none()),
        }
    }
}

/// nbdkit loads its parts from the directory it was built for.
fn nbdkit_parts() -> Vec<PathBuf> {
    let roots =
        ["/usr/lib/x86_64-linux-gnu/nbdkit", "/usr/lib64/nbdkit", "/usr/lib/nbdkit"].map(PathBuf::from);
    let Some(root) = roots.into_iter().find(|root| root.is_dir()) else { return Vec::new() };
    NBDKIT_PARTS.iter().map(|part| root.join(part)).filter(|part| part.exists()).collect()
}
