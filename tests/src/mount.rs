//! Mounts and loop devices of a test: made as root, gone when they are dropped, also by a panic.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::tool;

/// Whether this process may mount and has loop devices; says aloud what it lacks.
#[must_use]
pub fn can_mount() -> bool {
    if !Path::new("/dev/loop-control").exists() {
        tool::excuse("needs /dev/loop-control, which this kernel does not offer (modprobe loop)");
        return false;
    }
    if !nix::unistd::geteuid().is_root() {
        tool::skip("needs root, to mount and to set up loop devices");
        return false;
    }
    tool::find("losetup", "mount").is_some()
}

/// A mounted file system.
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// A tmpfs that holds at most so many bytes, at a directory that is made for it.
    pub fn tmpfs(at: &Path, len: u64) -> Result<Mount> {
        // Pages, not huge ones: the last free byte counts.
        Mount::new(Path::new("tmpfs"), at, "tmpfs", &format!("size={len},mode=700,huge=never"))
    }

    /// A file system in memory whose files have no extended attributes, at a directory that is made for it.
    pub fn ramfs(at: &Path) -> Result<Mount> {
        Mount::new(Path::new("ramfs"), at, "ramfs", "mode=700")
    }

    /// The ext4 on a device, at a directory that is made for it if it is not there.
    pub fn ext4(device: &Path, at: &Path) -> Result<Mount> {
        Mount::new(device, at, "ext4", "nodiscard")
    }

    fn new(source: &Path, at: &Path, kind: &str, options: &str) -> Result<Mount> {
        fs::create_dir_all(at)?;
        mount(Some(source), at, Some(kind), MsFlags::MS_NOATIME, Some(options))
            .with_context(|| format!("cannot mount {} ({kind}, {options})", source.display()))?;
        Ok(Mount { at: at.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Lets nobody write to it any more.
    pub fn make_read_only(&self) -> Result<()> {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        Ok(mount(None::<&str>, &self.at, None::<&str>, flags, None::<&str>)?)
    }

    /// Unmounts it, which fails while anybody uses it.
    pub fn unmount(self) -> Result<()> {
        let at = self.at.clone();
        // Whoever has just ended may hold it for another moment.
        let done = crate::seen(|| match umount2(&at, MntFlags::empty()) {
            Err(Errno::EBUSY) => None,
            done => Some(done),
        });
        std::mem::forget(self);
        done.unwrap_or(Err(Errno::EBUSY)).with_context(|| format!("cannot unmount {}", at.display()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What a panic left running may still use it: then it goes with its last user.
        let _best_effort = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// A loop device over a file.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Sets one up.
    pub fn over(file: &Path) -> Result<LoopDevice> {
        let losetup = tool::find("losetup", "mount").context("there is no losetup")?;
        let file = file.to_str().context("temporary paths are text")?;
        let done = tool::run(&losetup, &["--find", "--show", file]);
        ensure!(done.status.success(), "losetup {file}: {}", done.stderr.trim());
        Ok(LoopDevice { path: PathBuf::from(done.stdout.trim()) })
    }

    /// Takes the length of the file anew.
    pub fn resize(&self) -> Result<()> {
        let losetup = tool::find("losetup", "mount").context("there is no losetup")?;
        let done = tool::run(&losetup, &["--set-capacity".as_ref(), self.path.as_os_str()]);
        ensure!(done.status.success(), "losetup: {}", done.stderr.trim());
        Ok(())
    }

    /// The device node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Some(losetup) = tool::find("losetup", "mount") {
            let _may_be_gone = tool::run(&losetup, &["--detach", &self.path.to_string_lossy()]);
        }
    }
}

/// Makes an ext4 of 4 KiB blocks and a small journal in a file, whose blocks stay as they are.
pub fn make_ext4(in_file: &Path) -> Result<()> {
    let Some(mkfs) = tool::find("mkfs.ext4", "e2fsprogs") else { bail!("there is no mkfs.ext4") };
    let file = in_file.to_str().context("temporary paths are text")?;
    let settings = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
    let done = tool::run(&mkfs, &["-q", "-F", "-b", "4096", "-J", "size=4", "-E", settings, file]);
    ensure!(done.status.success(), "mkfs.ext4 {file}: {}", done.stderr.trim());
    Ok(())
}

/// Gives every dirty page of a file system to its device, and says whether that worked.
pub fn sync_file_system(at: &Path) -> io::Result<()> {
    let root = fs::File::open(at)?;
    Ok(nix::unistd::syncfs(&root)?)
}
