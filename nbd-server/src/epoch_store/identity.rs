//! Which storage a record speaks of, and whether it is as the last server left it.
//!
//! A number that travels with a file's bytes says nothing about the bytes: files are restored, rolled
//! back, copied, replaced and edited while no server runs. So the record has, in words of the form
//! `name=value`:
//!
//! | storage | which one it is | whether the kernel still has what it had in memory | whether it was changed after a clean end |
//! |---|---|---|---|
//! | regular file | `device`, `inode`, `size` | `marked` or `mount` | `changed`: its change time |
//! | block device | `diskseq`, `size`; after a reboot `name`, `size` | `diskseq`, `marked` | `written`: sectors written since it was made |
//!
//! The change time of a file cannot be set by a program, and every write and every restore changes it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{OTHER, number, word};
use crate::durability::epoch::{Findings, Record};
use crate::engine::inode_mark;

/// `STATX_MNT_ID_UNIQUE` (`include/uapi/linux/stat.h`, since Linux 6.8): the mount's number, which no later
/// mount of this boot has.
const MNT_ID_UNIQUE: u32 = 0x4000;

/// A storage that is served.
pub(super) enum Identity {
    File(RegularFile),
    Block(BlockDevice),
}

impl Identity {
    /// The identity of the storage that `opened` has open and that is at `path`.
    pub(super) fn of(opened: &File, path: &Path) -> anyhow::Result<Identity> {
        if opened.metadata()?.file_type().is_block_device() {
            return Ok(Identity::Block(BlockDevice::open(opened, path)?));
        }
        Ok(Identity::File(RegularFile::open(opened, path)?))
    }

    /// The description of a regular file that only the record uses.
    pub(super) fn file(&self) -> Option<&Arc<File>> {
        match self {
            Identity::File(file) => Some(&file.file),
            Identity::Block(_) => None,
        }
    }

    /// What a record says of it.
    pub(super) fn words(&self) -> String {
        match self {
            Identity::File(file) => file.words(),
            Identity::Block(device) => device.words(),
        }
    }

    /// What a record of a clean end says besides, where storing it does not change the storage; begins
    /// with a space.
    pub(super) fn unchanged_now(&self) -> io::Result<String> {
        Ok(match self {
            Identity::File(file) => {
                let changed = change_time(&file.file)?;
                format!(" changed={changed}-{changed}")
            }
            Identity::Block(device) => {
                device.written().map_or(String::new(), |sectors| format!(" written={sectors}"))
            }
        })
    }

    /// Has the kernel remember, for as long as it has the storage in memory, that a server was here and
    /// was told of no error.
    pub(super) fn mark_instance(&self) {
        let (Identity::File(RegularFile { file, marked, .. })
        | Identity::Block(BlockDevice { file, marked, .. })) = self;
        marked.store(inode_mark::set(file), Relaxed);
    }

    /// Compares it with what the record `left`, whose text is `text`, says.
    pub(super) fn compare(&self, text: &str, left: &Record, boot: u128) -> Findings {
        let same_boot = left.boot == boot;
        match self {
            Identity::File(file) => file.compare(text, left.clean, same_boot),
            Identity::Block(device) => device.compare(text, same_boot),
        }
    }
}

/// A regular file.
pub(super) struct RegularFile {
    file: Arc<File>,
    device: u64,
    inode: u64,
    size: u64,
    /// See [`MNT_ID_UNIQUE`]; none where the kernel does not tell.
    mount: Option<u64>,
    /// Whether its inode is marked.
    marked: AtomicBool,
}

impl RegularFile {
    fn open(opened: &File, path: &Path) -> anyhow::Result<RegularFile> {
        let file = open_again(path)?;
        let (of_opened, own) = (opened.metadata()?, file.metadata()?);
        ensure!(
            (of_opened.dev(), of_opened.ino()) == (own.dev(), own.ino()),
            "{} was replaced while it was being opened; start again",
            path.display()
        );
        let flags = StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
        let told = statx(&file, "", AtFlags::EMPTY_PATH, flags).ok();
        let mount = told.filter(|told| told.stx_mask & MNT_ID_UNIQUE != 0).map(|told| told.stx_mnt_id);
        Ok(RegularFile {
            file: Arc::new(file),
            device: own.dev(),
            inode: own.ino(),
            size: own.len(),
            mount,
            marked: AtomicBool::new(false),
        })
    }

    fn words(&self) -> String {
        let RegularFile { device, inode, size, .. } = self;
        let mut words = format!("device={device} inode={inode} size={size}");
        if self.marked.load(Relaxed) {
            words += " marked=1";
        }
        if let Some(mount) = self.mount {
            words += &format!(" mount={mount}");
        }
        words
    }

    fn compare(&self, text: &str, was_clean: bool, same_boot: bool) -> Findings {
        // Device numbers are given anew at each boot, and to a file system that is mounted again.
        let same_device = was_clean || !same_boot || number(text, "device") == Some(self.device);
        let left_size = number(text, "size");
        let has_all = left_size.is_some_and(|left| left <= self.size);
        if !same_device || number(text, "inode") != Some(self.inode) || !has_all {
            return OTHER;
        }
        // Files are grown while no server runs, and that changes the change time, too.
        let is_grown = left_size < Some(self.size);
        let same_instance = match word(text, "marked") {
            Some(_) => inode_mark::is_set(&self.file),
            None => self.mount.is_some() && number(text, "mount") == self.mount,
        };
        let changed = word(text, "changed").and_then(|window| window.split_once('-'));
        let changed = changed.and_then(|(from, until)| Some(from.parse().ok()?..=until.parse().ok()?));
        let now = change_time(&self.file).ok();
        let unchanged = is_grown || changed.zip(now).is_some_and(|(window, at)| window.contains(&at));
        Findings { same_storage: true, same_boot, same_instance: same_boot && same_instance, unchanged }
    }
}

/// Opens what is at `path` once more: another description of it.
fn open_again(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    file.with_context(|| format!("cannot open {} a second time", path.display()))
}

/// The change time of a file (`st_ctime`), in nanoseconds.
pub(super) fn change_time(file: &File) -> io::Result<u64> {
    let told = file.metadata()?;
    let nanoseconds =
        told.ctime().checked_mul(1_000_000_000).and_then(|at| at.checked_add(told.ctime_nsec()));
    nanoseconds.and_then(|at| u64::try_from(at).ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A block device, as sysfs describes it.
pub(super) struct BlockDevice {
    file: Arc<File>,
    /// Whether the inode of its node is marked.
    marked: AtomicBool,
    /// Bytes.
    size: u64,
    /// The disk's sequence number: no other disk of this boot has it.
    diskseq: Option<u64>,
    /// What the disk is called at every boot, as one word.
    name: Option<String>,
    /// Its statistics, opened before the server gives up what it does not need.
    statistics: Option<File>,
}

impl BlockDevice {
    fn open(opened: &File, path: &Path) -> anyhow::Result<BlockDevice> {
        let (file, number) = (open_again(path)?, opened.metadata()?.rdev());
        ensure!(
            file.metadata()?.rdev() == number,
            "{} was replaced while it was being opened; start again",
            path.display()
        );
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let node = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
            .with_context(|| format!("sysfs does not have block device {major}:{minor}"))?;
        let partition = fs::read_to_string(node.join("partition")).ok();
        let disk = match &partition {
            Some(_) => node.parent().map(Path::to_owned).context("a partition is in a disk")?,
            None => node.clone(),
        };
        let diskseq = fs::read_to_string(disk.join("diskseq")).ok();
        let sectors = fs::read_to_string(node.join("size")).context("sysfs has no size of the device")?;
        let sectors: u64 = sectors.trim().parse().context("sysfs has no size of the device")?;
        Ok(BlockDevice {
            file: Arc::new(file),
            marked: AtomicBool::new(false),
            size: sectors * 512,
            diskseq: diskseq.and_then(|text| text.trim().parse().ok()),
            name: name(&disk).map(|name| name + partition.as_deref().unwrap_or("").trim()),
            statistics: File::open(node.join("stat")).ok(),
        })
    }

    fn words(&self) -> String {
        let mut words = format!("size={}", self.size);
        if self.marked.load(Relaxed) {
            words += " marked=1";
        }
        if let Some(diskseq) = self.diskseq {
            words += &format!(" diskseq={diskseq}");
        }
        if let Some(name) = &self.name {
            words += &format!(" name={name}");
        }
        words
    }

    /// Sectors written since the device was made (`Documentation/block/stat.rst`, "write sectors").
    fn written(&self) -> Option<u64> {
        let mut text = [0; 512];
        let len = self.statistics.as_ref()?.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..len]).ok()?.split_whitespace().nth(6)?.parse().ok()
    }

    fn compare(&self, text: &str, same_boot: bool) -> Findings {
        let same_disk = self.diskseq.is_some() && number(text, "diskseq") == self.diskseq;
        // Some disks have none, and are known by their size alone.
        let same_name = word(text, "name") == self.name.as_deref();
        let has_all = number(text, "size").is_some_and(|left| left <= self.size);
        if !has_all || !(if same_boot { same_disk } else { same_name }) {
            return OTHER;
        }
        let same_instance = word(text, "marked").is_none() || inode_mark::is_set(&self.file);
        let written = number(text, "written");
        // The count begins anew with each boot.
        let unchanged = if same_boot { written.is_some() && written == self.written() } else { true };
        Findings { same_storage: true, same_boot, same_instance: same_boot && same_instance, unchanged }
    }
}

/// A name that a disk has at every boot, as one word.
fn name(disk: &Path) -> Option<String> {
    let names = ["dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "loop/backing_file"];
    let read = |name: &str| fs::read_to_string(PathBuf::from(disk).join(name)).ok();
    let found = names.iter().filter_map(|name| read(name)).find(|text| !text.trim().is_empty())?;
    Some(found.split_whitespace().collect::<Vec<_>>().join("_") + ":")
}
