//! The file or device behind an export: as it was when it was opened, and what is at its path now.
//!
//! An export keeps what it has opened. A path is not so faithful: files are replaced, removed, truncated and
//! extended behind a server's back, and the clients of the old one should not be the first to notice.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{AcqRel, Release},
};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

/// What is asked of the kernel. Not the times: once they have been read, the next write costs more.
const ASKED: StatxFlags = StatxFlags::TYPE.union(StatxFlags::INO).union(StatxFlags::SIZE);
/// Unit of the sizes of block devices in sysfs.
const SECTOR: u64 = 512;

/// What an export has opened, and where.
pub struct Source {
    path: PathBuf,
    id: Id,
    size: u64,
    found: Mutex<Found>,
    looking: AtomicBool,
}

/// What tells one file or device from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    File { device: (u32, u32), inode: u64 },
    Block { number: (u32, u32) },
}

/// What is at the path of a [`Source`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// What was opened.
    Unchanged,
    /// What was opened, with fewer bytes: so many.
    Shrunk(u64),
    /// What was opened, with more bytes: so many.
    Grown(u64),
    /// Something else.
    Replaced,
    /// Nothing.
    Gone,
    /// The kernel does not tell, and why.
    Unknown(String),
}

impl Source {
    /// What was just opened at `path`.
    ///
    /// # Errors
    /// The kernel does not tell what it is.
    pub fn of(path: &Path, opened: &File) -> io::Result<Source> {
        let told = statx(opened, "", AtFlags::EMPTY_PATH, ASKED)?;
        let (id, found) = (Id::of(&told), Mutex::new(Found::Unchanged));
        let (path, looking) = (path.to_owned(), AtomicBool::new(false));
        Ok(Source { path, id, size: id.size(&told)?, found, looking })
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the same file or device is at `path`; no, if that cannot be told.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        statx(CWD, path, AtFlags::empty(), ASKED).is_ok_and(|told| Id::of(&told) == self.id)
    }

    /// What the last look has found.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the path again; tells whether there is something else to say than before. It may wait for a disk.
    /// While another thread looks, this one does not wait for it.
    pub fn look(&self) -> bool {
        if self.looking.swap(true, AcqRel) {
            return false;
        }
        let now = self.see();
        self.looking.store(false, Release);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *found != now;
        *found = now;
        is_news
    }

    /// Whoever looks waits for a disk.
    pub fn does_not_answer(&self) {
        let unknown = Found::Unknown("its file system does not answer".to_owned());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = unknown;
    }

    /// Says what is found, in a sentence; nothing where all is as it was.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let Source { path, size, .. } = self;
        let path = path.display();
        let renew = "to serve it, remove the export, reload, add it and reload again";
        Some(match self.found() {
            Found::Unchanged => return None,
            Found::Shrunk(now) => format!(
                "{path} was truncated: it has {now} bytes, and {size} are served; what is beyond cannot be read"
            ),
            Found::Grown(now) => format!(
                "{path} has grown to {now} bytes, and clients are told {size}; remove the export, reload, add it and \
                 reload again to serve them all"
            ),
            Found::Replaced => {
                format!("{path} is another file now, and clients still use the one that was there; {renew}")
            }
            Found::Gone => format!(
                "{path} is gone; clients still use what was there, and it vanishes when the export ends"
            ),
            Found::Unknown(error) => format!("{path} cannot be looked at: {error}"),
        })
    }

    fn see(&self) -> Found {
        let told = match statx(CWD, &self.path, AtFlags::empty(), ASKED) {
            Ok(told) => told,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Found::Gone,
            Err(error) => return Found::Unknown(io::Error::from(error).to_string()),
        };
        match self.id.size(&told) {
            _ if Id::of(&told) != self.id => Found::Replaced,
            Ok(size) if size < self.size => Found::Shrunk(size),
            Ok(size) if size > self.size => Found::Grown(size),
            Ok(_) => Found::Unchanged,
            Err(error) => Found::Unknown(error.to_string()),
        }
    }
}

impl Id {
    fn of(told: &Statx) -> Id {
        if FileType::from_raw_mode(told.stx_mode.into()) == FileType::BlockDevice {
            return Id::Block { number: (told.stx_rdev_major, told.stx_rdev_minor) };
        }
        Id::File { device: (told.stx_dev_major, told.stx_dev_minor), inode: told.stx_ino }
    }

    /// Bytes of what `told` is about.
    fn size(self, told: &Statx) -> io::Result<u64> {
        let Id::Block { number: (major, minor) } = self else { return Ok(told.stx_size) };
        let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
        let sectors: u64 = text.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(sectors.saturating_mul(SECTOR))
    }
}

impl fmt::Display for Found {
    /// In a word, for programs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::Unchanged => "unchanged",
            Found::Shrunk(_) => "shrunk",
            Found::Grown(_) => "grown",
            Found::Replaced => "replaced",
            Found::Gone => "gone",
            Found::Unknown(_) => "unknown",
        })
    }
}
