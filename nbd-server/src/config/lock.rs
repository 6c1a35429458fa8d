//! Locks that keep a second server off the same storage, whoever made it.
//!
//! | lock | who heeds it |
//! |---|---|
//! | flock(2) on the whole file, shared by readers | other servers of ours, and of util-linux' flock(1) |
//! | open file description locks on single bytes | QEMU, all its tools (`block/file-posix.c`) |
//!
//! QEMU has a byte for each thing that it does with an image, and another for each that it does not let others do. It
//! holds those of its own by shared locks, and refuses where somebody holds one that stands against them. So do we:
//! readers and writers let nobody else write. That a writer reads consistently what others read it does not forbid, or
//! `qemu-img info -U` would be refused, which promises to expect nothing.
//!
//! Exports of one server may share a file if at most one of them writes, so they share the lock, too.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::backend::Access;

/// How long a lock on a block device may be held by udev, which looks at every new device.
const UDEV_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried again.
const UDEV_REST: Duration = Duration::from_millis(50);

/// The byte of an image that stands for the first thing QEMU can do with it (`RAW_LOCK_PERM_BASE`).
const DONE: i64 = 100;
/// The byte that stands for not letting others do it (`RAW_LOCK_SHARED_BASE`).
const FORBIDDEN: i64 = 200;
/// To read what is consistent (`BLK_PERM_CONSISTENT_READ`, by the number of its bit).
const READ: i64 = 0;
/// `BLK_PERM_WRITE`.
const WRITE: i64 = 1;
/// `BLK_PERM_RESIZE`.
const RESIZE: i64 = 3;

/// The locks of a server.
#[derive(Clone, Default)]
pub struct Locks {
    held: Arc<Mutex<HashMap<Id, Weak<Lock>>>>,
}

/// Device and inode.
type Id = (u64, u64);

/// The lock of one file or device, held until it is dropped.
pub struct Lock {
    file: File,
    /// What it was taken for; nothing yet, at first.
    strength: Mutex<Option<Access>>,
}

impl Locks {
    /// The lock of what is open as `file` and is at `path`; taken, if no other export has it yet.
    ///
    /// # Errors
    /// Somebody else has it, and who.
    pub fn take(&self, path: &Path, file: &File, access: Access) -> anyhow::Result<Arc<Lock>> {
        let told = file.metadata()?;
        let id = (told.dev(), told.ino());
        let fresh = Arc::new(Lock { file: another(file, access)?, strength: Mutex::new(None) });
        let lock = self.known(id, fresh);
        let patience = if told.file_type().is_block_device() { UDEV_PATIENCE } else { Duration::ZERO };
        let taken = lock.strengthen(access, patience);
        taken.with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(lock)
    }

    /// The lock that others have of the same, or else `fresh`.
    fn known(&self, id: Id, fresh: Arc<Lock>) -> Arc<Lock> {
        let mut held = locked(&self.held);
        held.retain(|_, lock| lock.strong_count() > 0);
        let known = held.get(&id).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            held.insert(id, Arc::downgrade(&fresh));
            fresh
        })
    }
}

impl Lock {
    /// Takes it for so much, if it is not yet.
    fn strengthen(&self, access: Access, patience: Duration) -> anyhow::Result<()> {
        let mut strength = locked(&self.strength);
        if *strength == Some(Access::ReadWrite) || *strength == Some(access) {
            return Ok(());
        }
        let taken = self.take_whole(access, patience).and_then(|()| self.take_bytes(access));
        if let (Err(_), Some(before)) = (&taken, *strength) {
            // Even to try for more may have lost what there was.
            let _taken_again = self.try_whole(before);
            let _never_had = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, DONE + WRITE)));
        }
        taken?;
        *strength = Some(access);
        Ok(())
    }

    fn take_whole(&self, access: Access, patience: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            match self.try_whole(access) {
                Ok(()) => return Ok(()),
                Err(Errno::EWOULDBLOCK) if started.elapsed() < patience => thread::sleep(UDEV_REST),
                Err(Errno::EWOULDBLOCK) => bail!("{}", self.holder(access)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn try_whole(&self, access: Access) -> Result<(), Errno> {
        let result = match access {
            Access::ReadWrite => self.file.try_lock(),
            Access::ReadOnly => self.file.try_lock_shared(),
        };
        match result {
            Ok(()) => Ok(()),
            Err(fs::TryLockError::WouldBlock) => Err(Errno::EWOULDBLOCK),
            Err(fs::TryLockError::Error(error)) => {
                Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
            }
        }
    }

    /// First takes, then looks, as everybody does: of two who begin at once at least one sees the other.
    fn take_bytes(&self, access: Access) -> anyhow::Result<()> {
        let forbidden = [WRITE, RESIZE];
        let done: &[i64] = match access {
            Access::ReadWrite => &[READ, WRITE],
            Access::ReadOnly => &[READ],
        };
        let taken = done.iter().map(|it| DONE + it).chain(forbidden.iter().map(|it| FORBIDDEN + it));
        for byte in taken {
            match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte))) {
                Ok(_) => {}
                // The whole byte is somebody's own.
                Err(Errno::EAGAIN | Errno::EACCES) => bail!("{}", self.holder(access)),
                Err(error) => {
                    tracing::debug!(%error, "this file system has no locks that QEMU would see");
                    return Ok(());
                }
            }
        }
        let against = done.iter().map(|it| FORBIDDEN + it).chain(forbidden.iter().map(|it| DONE + it));
        for byte in against {
            let mut found = range(libc::F_WRLCK, byte);
            fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut found))?;
            ensure!(i32::from(found.l_type) == libc::F_UNLCK, "{}", self.holder(access));
        }
        Ok(())
    }

    /// Says who holds it, and what to do about it.
    fn holder(&self, access: Access) -> String {
        let holders = holders(&self.file).unwrap_or_default();
        let who = match &holders[..] {
            [] => "another process".to_owned(),
            some => some.iter().map(|pid| named(*pid)).collect::<Vec<_>>().join(", "),
        };
        match access {
            Access::ReadWrite => format!("{who} uses it; end that first"),
            Access::ReadOnly => format!("{who} writes to it, or lets nobody else use it; end that first"),
        }
    }
}

/// Another open file description of the same, so that the lock does not depend on what becomes of the first.
fn another(file: &File, access: Access) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).write(access == Access::ReadWrite).open(path)
}

/// One byte.
fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    let small = |number: libc::c_int| i16::try_from(number).expect("a constant of fcntl(2) is small");
    libc::flock { l_type: small(kind), l_whence: small(libc::SEEK_SET), l_start: byte, l_len: 1, l_pid: 0 }
}

/// The processes that hold locks of any kind on what `file` is, as far as the kernel tells.
fn holders(file: &File) -> io::Result<Vec<i32>> {
    let told = file.metadata()?;
    let (major, minor) = (nix::sys::stat::major(told.dev()), nix::sys::stat::minor(told.dev()));
    let id = format!(" {major:02x}:{minor:02x}:{} ", told.ino());
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = Vec::new();
    let mut nameless = false;
    for line in fs::read_to_string("/proc/locks")?.lines().filter(|line| line.contains(&id)) {
        match line.split_whitespace().find_map(|word| word.parse::<i32>().ok()) {
            Some(pid) if pid > 0 => found.push(pid),
            // A lock of a description is nobody's: several processes may have it open.
            _ => nameless = true,
        }
    }
    if nameless {
        found.extend(openers(&id));
    }
    found.retain(|pid| *pid != own);
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The processes that have a description open which holds a lock.
fn openers(id: &str) -> Vec<i32> {
    let holds = |pid: i32| {
        let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        let mut texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
        texts.any(|text| text.lines().any(|line| line.starts_with("lock:") && line.contains(id)))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| holds(*pid)).collect()
}

/// A process, as people know it.
fn named(pid: i32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(command) => format!("process {pid} ({})", command.trim()),
        Err(_) => format!("process {pid}"),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
