//! The interpreter: carries a workload out in a directory, and tells the recorder by marks what it does.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, bail};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use super::operation::{BLOCK, BLOCK_LEN, Blocks, Operation};
use super::sector::{Origin, SECTOR};

/// Where what nobody looks at is, below the root.
const NOISE: &str = "noise";

/// Where marks go.
pub struct Marker(Option<BufReader<UnixStream>>);

impl Marker {
    /// To the recorder at a socket, or nowhere.
    pub fn new(socket: Option<&Path>) -> anyhow::Result<Marker> {
        let connect = |path: &Path| {
            UnixStream::connect(path)
                .with_context(|| format!("cannot reach the recorder at {}", path.display()))
        };
        Ok(Marker(socket.map(connect).transpose()?.map(BufReader::new)))
    }

    /// Sends a mark, and waits until it is recorded.
    pub fn mark(&mut self, text: &str) -> anyhow::Result<()> {
        match &mut self.0 {
            Some(stream) => recording::send_mark(stream, text).map(drop).context("cannot send a mark"),
            None => Ok(()),
        }
    }
}

/// Carries out a workload in `root`.
pub fn run(operations: &[Operation], root: &Path, marker: &mut Marker) -> anyhow::Result<()> {
    let mut runner = Runner { root, files: HashMap::new(), noise: Noise::default() };
    for (number, operation) in (1..).zip(operations) {
        if let Operation::Mark(text) = operation {
            marker.mark(text)?;
            continue;
        }
        marker.mark(&format!("> {number} {operation}"))?;
        runner.carry_out(number, operation).with_context(|| format!("operation {number}: {operation}"))?;
        marker.mark(&format!("< {number}"))?;
    }
    runner.noise.end()
}

struct Runner<'a> {
    root: &'a Path,
    /// By path: the operation that made the file, and how many blocks it has.
    files: HashMap<String, (u32, u64)>,
    noise: Noise,
}

impl Runner<'_> {
    fn carry_out(&mut self, number: u32, operation: &Operation) -> anyhow::Result<()> {
        let at = |path: &str| self.root.join(path);
        match operation {
            Operation::Create(path) => {
                File::create_new(at(path))?;
                self.files.insert(path.clone(), (number, 0));
            }
            Operation::Write(path, blocks) => self.write(number, path, *blocks, 0)?,
            Operation::Append(path, count) => {
                let (_, size) = self.file(path)?;
                self.write(number, path, Blocks { first: size, count: *count }, 0)?;
            }
            Operation::DirectWrite(path, blocks) => self.write(number, path, *blocks, libc::O_DIRECT)?,
            Operation::Rename(from, to) => {
                // Of directories it is not known what is in them.
                let file = self.file(from)?;
                fs::rename(at(from), at(to))?;
                self.files.remove(from);
                self.files.insert(to.clone(), file);
            }
            Operation::Link(from, to) => {
                let file = self.file(from)?;
                fs::hard_link(at(from), at(to))?;
                self.files.insert(to.clone(), file);
            }
            Operation::Unlink(path) => {
                fs::remove_file(at(path))?;
                self.files.remove(path);
            }
            Operation::MakeDirectory(path) => fs::create_dir(at(path))?,
            Operation::RemoveDirectory(path) => fs::remove_dir(at(path))?,
            Operation::Truncate(path, count) => {
                self.open(path, 0)?.set_len(count * BLOCK)?;
                self.resize(path, |_| *count)?;
            }
            Operation::Punch(path, blocks) => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                self.allocate(path, *blocks, flags)?;
            }
            Operation::Zero(path, blocks) => {
                self.allocate(path, *blocks, FallocateFlags::FALLOC_FL_ZERO_RANGE)?;
                self.resize(path, |size| size.max(blocks.first + blocks.count))?;
            }
            Operation::Fsync(path) => self.open(path, 0)?.sync_all()?,
            Operation::Fdatasync(path) => self.open(path, 0)?.sync_data()?,
            Operation::DirectorySync(path) => File::open(at(path.trim_start_matches('/')))?.sync_all()?,
            Operation::Sync => nix::unistd::syncfs(File::open(self.root)?)?,
            Operation::Fill(count) => {
                let directory = self.root.join(NOISE);
                fs::create_dir_all(&directory)?;
                let file = File::create_new(directory.join(format!("filler{number}")))?;
                fallocate(file, FallocateFlags::empty(), 0, i64::try_from(count * BLOCK)?)?;
            }
            Operation::Noise(count) => self.noise.begin(self.root, *count)?,
            Operation::Mark(_) => unreachable!("marks are sent, not carried out"),
        }
        Ok(())
    }

    fn file(&self, path: &str) -> anyhow::Result<(u32, u64)> {
        self.files.get(path).copied().with_context(|| format!("this workload has made no file {path}"))
    }

    /// Notes the size of a file under all its names.
    fn resize(&mut self, path: &str, to: impl Fn(u64) -> u64) -> anyhow::Result<()> {
        let (number, size) = self.file(path)?;
        let same = self.files.values_mut().filter(|(other, _)| *other == number);
        same.for_each(|file| file.1 = to(size));
        Ok(())
    }

    fn open(&self, path: &str, flags: i32) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.root.join(path))
    }

    fn allocate(&self, path: &str, blocks: Blocks, flags: FallocateFlags) -> anyhow::Result<()> {
        let bytes = |blocks: u64| i64::try_from(blocks * BLOCK).context("a file is small");
        fallocate(self.open(path, 0)?, flags, bytes(blocks.first)?, bytes(blocks.count)?)?;
        Ok(())
    }

    fn write(&mut self, version: u32, path: &str, blocks: Blocks, flags: i32) -> anyhow::Result<()> {
        let (file, _) = self.file(path)?;
        let len = usize::try_from(blocks.count * BLOCK)?;
        // Direct writes want memory that is aligned as blocks are.
        let mut memory = vec![0; len + BLOCK_LEN];
        let skip = memory.as_ptr().align_offset(BLOCK_LEN);
        let data = &mut memory[skip..][..len];
        for (number, bytes) in (0..).zip(data.chunks_exact_mut(SECTOR)) {
            let block = u32::try_from(blocks.first)? + number / 8;
            bytes.copy_from_slice(&Origin { file, block, sector: number % 8, version }.bytes());
        }
        self.open(path, flags)?.write_all_at(data, blocks.first * BLOCK)?;
        self.resize(path, |size| size.max(blocks.first + blocks.count))
    }
}

/// Threads that write what nobody checks.
#[derive(Default)]
struct Noise {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Noise {
    fn begin(&mut self, root: &Path, count: u64) -> anyhow::Result<()> {
        let directory = root.join(NOISE);
        fs::create_dir_all(&directory)?;
        for number in 0..count {
            let (path, stop) = (directory.join(format!("{number}")), self.stop.clone());
            let thread = thread::Builder::new().name("noise".to_owned());
            self.threads.push(thread.spawn(move || noise(&path, &stop))?);
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            match thread.join() {
                Ok(done) => done.context("a noise thread failed")?,
                Err(_) => bail!("a noise thread panicked"),
            }
        }
        Ok(())
    }
}

/// Writes, syncs, and replaces a file until it is told to stop.
fn noise(path: &PathBuf, stop: &AtomicBool) -> std::io::Result<()> {
    let block = [0x6e; BLOCK_LEN];
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(&block)?;
        match turn % 8 {
            3 => file.sync_data()?,
            6 => file.sync_all()?,
            7 => fs::remove_file(path)?,
            _ => {}
        }
    }
    Ok(())
}
