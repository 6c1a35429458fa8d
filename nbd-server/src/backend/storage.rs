//! What files and block devices share: how their descriptor is read, written and synced.
//!
//! | what | how |
//! |---|---|
//! | reads of what is cached | where the request is |
//! | other reads; everything around the page cache | by the worker's ring, if the file system is one of a local disk; else on the pool |
//! | buffered writes | where the request is, if its worker [may wait](seat); else in the file's [`Lane`] |
//! | long ones, and syncs | on the pool |
//! | anything that lies in memory | where the request is, unless it is long |

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::calls::{read_rest, write_gathered};
use super::direct::Direct;
use crate::buf::IoBuf;
use crate::device::{Piece, read_failure, sync_failure};
use crate::engine::{Lane, Ring, Share, inline, inode_mark, ring, seat};

/// Bytes that are read ahead at most for one request: what a client then reads in a few of them.
const AHEAD_MAX: i64 = 64 << 20;
/// Bytes that are read ahead at a time: the kernel's usual window (`read_ahead_kb`).
const AHEAD_PIECE: usize = 128 << 10;
/// A buffered write that takes longer has waited for the disk.
const QUICK: Duration = Duration::from_millis(1);
/// After one that did, so many go to a thread.
const SLOW_FOR: u32 = 256;

/// Operations of one storage that rings have at a time: as many as a fast disk works on at once. The rest goes to the
/// pool, which waits no longer if the disk hangs.
const IN_RINGS_MAX: usize = 256;
/// Syncs of one storage that may run at once. A disk takes writes of several faster than of one, and more
/// than a few only make each shorter.
const SYNCS: usize = 4;

/// An open descriptor and the engine that drives it.
pub(super) struct Storage {
    file: Arc<File>,
    /// Other descriptions of the same storage, for syncs.
    others: Vec<Arc<File>>,
    share: Share,
    lane: Lane,
    /// Where it is reached around the page cache.
    pub(super) direct: Option<Direct>,
    /// Nothing done to it waits for a disk.
    in_memory: bool,
    /// Bytes that a regular file has.
    file_len: Option<u64>,
    /// For so many writes more it is held to be slow.
    slow: AtomicU32,
    /// Whether rings may have its operations.
    submitted_at_once: bool,
    /// Operations that rings have.
    in_rings: AtomicUsize,
}

/// An operation that a ring has, until this is dropped.
struct InRing<'a>(Rc<Ring>, &'a AtomicUsize);

impl Drop for InRing<'_> {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Relaxed);
    }
}

impl Storage {
    /// Drives `file`, which was just opened.
    pub(super) fn new(file: File, direct: Option<Direct>, share: Share) -> io::Result<Storage> {
        let in_memory = direct.is_none() && inline::is_in_memory(&file);
        let file_len = file.metadata().ok().filter(Metadata::is_file).map(|told| told.len());
        let syncs = if in_memory { 1 } else { SYNCS };
        let others = (1..syncs).map(|_| open_again(&file).map(Arc::new)).collect::<io::Result<_>>()?;
        let file = Arc::new(file);
        let lane = Lane::new(file.clone(), share.clone());
        let submitted_at_once = inline::is_submitted_at_once(&file);
        let (slow, in_rings) = (AtomicU32::new(0), AtomicUsize::new(0));
        Ok(Storage {
            file,
            others,
            share,
            lane,
            direct,
            in_memory,
            file_len,
            slow,
            submitted_at_once,
            in_rings,
        })
    }

    /// Syncs that may run at once.
    pub(super) fn syncs(&self) -> usize {
        1 + self.others.len()
    }

    pub(super) async fn read(&self, at: u64, mut buf: IoBuf) -> io::Result<IoBuf> {
        if let Some(direct) = &self.direct {
            return match direct.is_whole(at, buf.len() as u64) {
                true => self.read_waiting(at, buf, 0).await,
                false => direct.read_parts(self, at, buf).await,
            };
        }
        if buf.len() > inline::COPY_MAX {
            return self.read_waiting(at, buf, 0).await;
        }
        if self.in_memory {
            read_rest(&self.file, &mut buf, 0, at)?;
            return Ok(buf);
        }
        match inline::read_cached(&self.file, &mut buf, at)? {
            done if done == buf.len() => Ok(buf),
            done => self.read_waiting(at, buf, done).await,
        }
    }

    /// Reads the rest of a buffer of which `done` bytes are read.
    pub(super) async fn read_waiting(&self, at: u64, mut buf: IoBuf, mut done: usize) -> io::Result<IoBuf> {
        while done < buf.len() {
            let Some(InRing(ring, _)) = &self.ring_for(buf.len()) else {
                return self.run(move |file| read_rest(file, &mut buf, done, at).map(|()| buf)).await;
            };
            let (place, read);
            place = at + done as u64;
            (read, buf) = ring.read(self.file.clone(), buf, done, place).await;
            match read {
                Ok(0) => return Err(read_failure(place, io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_for_a_thread(&error) => {
                    return self.run(move |file| read_rest(file, &mut buf, done, at).map(|()| buf)).await;
                }
                Err(error) => return Err(read_failure(place, error)),
            }
        }
        Ok(buf)
    }

    pub(super) async fn write(&self, at: u64, data: IoBuf) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            return match direct.is_whole(at, data.len() as u64) {
                true => self.write_waiting(at, data).await,
                false => direct.write_parts(self, at, &data).await,
            };
        }
        if data.len() > inline::COPY_MAX {
            return self.write_waiting(at, data).await;
        }
        if self.in_memory {
            return self.file.write_all_at(&data, at);
        }
        match seat::take() {
            Some(seat) if self.is_quick() => self.judge(seat.run(|| self.file.write_all_at(&data, at))),
            _ => self.lane.write(at, data).await,
        }
    }

    /// Writes where nobody else waits.
    pub(super) async fn write_waiting(&self, at: u64, mut data: IoBuf) -> io::Result<()> {
        // Buffered writes exclude each other in the kernel, whoever makes them.
        let mut done = 0;
        while done < data.len() {
            let ring = self.direct.as_ref().and_then(|_| self.ring_for(data.len()));
            let Some(InRing(ring, _)) = &ring else {
                return self.run(move |file| file.write_all_at(&data[done..], at + done as u64)).await;
            };
            let written;
            (written, data) = ring.write(self.file.clone(), data, done, at + done as u64).await;
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_for_a_thread(&error) => {
                    return self.run(move |file| file.write_all_at(&data[done..], at + done as u64)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The ring of this worker, if it shall move so many bytes: what is cached it moves at once, and to
    /// copy much would hold up the others.
    fn ring_for(&self, len: usize) -> Option<InRing<'_>> {
        let copies_much = self.direct.is_none() && len > inline::COPY_MAX;
        if self.in_memory || copies_much || !self.submitted_at_once {
            return None;
        }
        let ring = ring::current()?;
        if self.in_rings.fetch_add(1, Relaxed) < IN_RINGS_MAX {
            return Some(InRing(ring, &self.in_rings));
        }
        self.in_rings.fetch_sub(1, Relaxed);
        None
    }

    /// Whether the last writes did not wait for anything.
    fn is_quick(&self) -> bool {
        let slow = self.slow.load(Relaxed);
        self.slow.store(slow.saturating_sub(1), Relaxed);
        slow == 0
    }

    /// Notes how long a write took.
    fn judge<T>(&self, (done, took): (T, Duration)) -> T {
        if took > QUICK {
            self.slow.store(SLOW_FOR, Relaxed);
        }
        done
    }

    /// Has the kernel read the range ahead.
    pub(super) async fn cache(&self, at: u64, len: u64) -> io::Result<()> {
        if self.direct.is_some() {
            return Ok(());
        }
        let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let (at, len) = (signed(at)?, signed(len)?);
        self.run(move |file| {
            // One call reads no further than the kernel's window, however much it is asked for.
            for place in (at..at.saturating_add(len.min(AHEAD_MAX))).step_by(AHEAD_PIECE) {
                posix_fadvise(file, place, AHEAD_PIECE as i64, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn write_many(&self, pieces: Vec<Piece>) -> io::Result<()> {
        if self.direct.is_some() {
            // Parts of a piece need not be whole blocks, and it need not be in whole ones.
            for piece in pieces {
                self.write(piece.at, piece.gather()).await?;
            }
            return Ok(());
        }
        self.run(move |file| {
            // Each is let go of as soon as it is written.
            pieces.into_iter().try_for_each(|piece| write_gathered(file, &piece))
        })
        .await
    }

    pub(super) async fn flush(&self, number: usize) -> io::Result<()> {
        let len = self.file_len;
        if self.in_memory {
            return sync(&self.file, len);
        }
        let file = self.description(number);
        self.share.run(move || sync(&file, len)).await
    }

    pub(super) async fn write_and_flush(&self, at: u64, data: IoBuf, number: usize) -> io::Result<()> {
        // What a thread does anyway is one hop to a thread instead of two.
        let by_thread = match &self.direct {
            Some(direct) => direct.is_whole(at, data.len() as u64),
            None => !self.in_memory && data.len() > inline::COPY_MAX,
        };
        if !by_thread {
            self.write(at, data).await?;
            return self.flush(number).await.map_err(sync_failure);
        }
        let (synced, len) = (self.description(number), self.file_len);
        self.run(move |file| {
            file.write_all_at(&data, at)?;
            sync(&synced, len).map_err(sync_failure)
        })
        .await
    }

    /// The open file description of a sync.
    fn description(&self, number: usize) -> Arc<File> {
        if number == 0 { self.file.clone() } else { self.others[number - 1].clone() }
    }

    /// Runs `job` on the descriptor where it may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.clone();
        self.share.run(move || job(&file)).await
    }
}

/// Whether a ring could not do it for want of something that a thread does not need.
fn is_for_a_thread(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock)
}

/// Another open file description of the same storage.
fn open_again(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Makes what was written stable. A failure is told once, so it leaves its trace before anything else can
/// happen. A file that is shorter than the `len` bytes that are served has lost what was beyond its end.
fn sync(file: &File, len: Option<u64>) -> io::Result<()> {
    let all_is_there = || match len {
        Some(served) => check_len(file, served),
        None => Ok(()),
    };
    file.sync_data().and_then(|()| all_is_there()).inspect_err(|_| inode_mark::clear(file))
}

/// Fails if the file has fewer bytes than are served.
fn check_len(file: &File, served: u64) -> io::Result<()> {
    // Not by fstat(2): once somebody has read a file's times, the next write dirties its inode for the sake of
    // another one (`fs/stat.c`, `fill_mg_cmtime`), and a write with its sync takes a quarter longer.
    let now = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::SIZE)?.stx_size;
    if now >= served {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the file was truncated: it has {now} bytes, fewer than the {served} that are served"
    )))
}
