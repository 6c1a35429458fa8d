//! Files to serve, and what became of them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::TMPFS_MAGIC;
use tempfile::TempDir;

/// A regular file in a directory of its own.
pub struct Disk {
    dir: TempDir,
    path: PathBuf,
}

impl Disk {
    /// A file of `len` bytes that are all a hole.
    #[must_use]
    pub fn sparse(len: u64) -> Disk {
        Disk::in_dir(tempfile::tempdir().expect("a temporary directory can be made"), len)
    }

    /// The same on a file system in memory, if there is one.
    #[must_use]
    pub fn in_memory(len: u64) -> Option<Disk> {
        let is_tmpfs = nix::sys::statfs::statfs("/dev/shm").ok()?.filesystem_type() == TMPFS_MAGIC;
        is_tmpfs.then(|| Disk::in_dir(tempfile::tempdir_in("/dev/shm").expect("it can be written"), len))
    }

    fn in_dir(dir: TempDir, len: u64) -> Disk {
        let path = dir.path().join("disk.img");
        File::create(&path).and_then(|file| file.set_len(len)).expect("a file can be made");
        Disk { dir, path }
    }

    /// A file with this content.
    #[must_use]
    pub fn holding(content: &[u8]) -> Disk {
        let disk = Disk::sparse(0);
        fs::write(&disk.path, content).expect("a file can be written");
        disk
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, for more files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The word that makes a server serve it.
    #[must_use]
    pub fn spec(&self) -> OsString {
        self.path.clone().into()
    }

    /// What it holds now.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        fs::read(&self.path).expect("it can be read")
    }

    /// Bytes it occupies on the disk beneath, however long it is.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        fs::metadata(&self.path).expect("it is there").blocks() * 512
    }
}

/// Bytes that differ from place to place, so that data in a wrong place is noticed; none is zero.
#[must_use]
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|place| (seed ^ (place ^ place >> 8 ^ place >> 16).to_le_bytes()[0]).max(1)).collect()
}
