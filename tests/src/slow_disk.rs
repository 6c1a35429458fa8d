//! A disk that is slow, or hangs for as long as a test likes: a file of a FUSE file system that this process serves.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use tempfile::TempDir;

use crate::tool;

const NAME: &str = "disk.img";
const FILE: INodeNo = INodeNo(2);
/// Nothing of the name is ever asked again.
const TTL: Duration = Duration::from_secs(3600);

/// How a disk answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Quick,
    /// One operation after the other, each in so long.
    Slow(Duration),
    /// Not at all.
    Hung,
}

/// A file whose disk has a pace. Whoever waits for it gets an answer when it is dropped at the latest.
pub struct SlowDisk {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

struct Shared {
    state: Mutex<State>,
}

struct State {
    pace: Pace,
    content: Vec<u8>,
    /// Operations that hang.
    hung: Vec<Operation>,
}

type Operation = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// Whether this process may mount FUSE file systems; says aloud what it lacks.
#[must_use]
pub fn can_be_made() -> bool {
    if !nix::unistd::geteuid().is_root() {
        tool::skip("needs root, to mount a FUSE file system");
        return false;
    }
    let there = PathBuf::from("/dev/fuse").exists();
    if !there {
        tool::excuse("needs /dev/fuse, which this kernel does not offer (modprobe fuse)");
    }
    there
}

impl SlowDisk {
    /// A file of so many zeroes, quick at first.
    pub fn make(len: usize) -> Result<SlowDisk> {
        let dir = tempfile::tempdir()?;
        let state = State { pace: Pace::Quick, content: vec![0; len], hung: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let mut config = fuser::Config::default();
        config.mount_options.push(MountOption::FSName("slow-disk".to_owned()));
        let session = fuser::spawn_mount(Served(shared.clone()), dir.path(), &config);
        let session = Some(session.context("cannot mount a FUSE file system")?);
        Ok(SlowDisk { shared, session, dir })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    /// Changes the pace. What hung is done now, unless it is to hang on.
    pub fn set(&self, pace: Pace) {
        let mut state = self.shared.lock();
        state.pace = pace;
        if pace != Pace::Hung {
            let hung = std::mem::take(&mut state.hung);
            hung.into_iter().for_each(|operation| operation(&mut state.content));
        }
    }

    /// Operations that hang.
    #[must_use]
    pub fn hung(&self) -> usize {
        self.shared.lock().hung.len()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.set(Pace::Quick);
        if let Some(session) = self.session.take() {
            // Whoever still has it open keeps it until then.
            let _best_effort = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
            // The thread ends with the last user of the file, who may be another process.
            std::mem::forget(session);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does an operation at the pace of the disk.
    fn operate(&self, operation: impl FnOnce(&mut Vec<u8>) + Send + 'static) {
        let mut state = self.lock();
        if state.pace == Pace::Hung {
            return state.hung.push(Box::new(operation));
        }
        if let Pace::Slow(time) = state.pace {
            drop(state);
            // Here, where all operations come by one after the other.
            thread::sleep(time);
            state = self.lock();
        }
        operation(&mut state.content);
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let len = self.lock().content.len() as u64;
        let (kind, perm, size) =
            if inode == FILE { (FileType::RegularFile, 0o600, len) } else { (FileType::Directory, 0o700, 0) };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The file system.
struct Served(Arc<Shared>);

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.0.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.0.attributes(inode));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.operate(move |content| match range(content.len(), offset, size as usize) {
            Ok(range) => reply.data(&content[range]),
            Err(_) => reply.error(Errno::EIO),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.0.operate(move |content| match range(content.len(), offset, data.len()) {
            Ok(range) if range.len() == data.len() => {
                content[range].copy_from_slice(&data);
                reply.written(u32::try_from(data.len()).expect("a write is short"));
            }
            _ => reply.error(Errno::ENOSPC),
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.operate(move |_| reply.ok());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        self.0.operate(move |content| {
            let len = usize::try_from(length).unwrap_or(usize::MAX);
            if let Ok(range) = range(content.len(), offset, len) {
                content[range].fill(0);
            }
            reply.ok();
        });
    }
}

/// What there is of a range.
fn range(len: usize, offset: u64, wanted: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?.min(len);
    Ok(start..start.saturating_add(wanted).min(len))
}
