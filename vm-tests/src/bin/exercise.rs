//! The guest's exerciser: `exercise TARGET SIZE SEED STOP` does to a file or a block device what a program may do, at
//! random and in any alignment, and compares what it reads with what it remembers, until a file called STOP appears.
//! Then it reads everything once more, past all caches, and tells how much it did and what took longest. An error or a
//! wrong byte ends it with 1.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use vm_tests::Chance;

/// Longest run of bytes that is read or written at once.
const RUN_MAX: u64 = 192 << 10;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [target, size, seed, stop] = &words[..] else { bail!("say: exercise TARGET SIZE SEED STOP") };
    let (target, stop) = (Path::new(target), Path::new(stop));
    let mut exercise = Exercise::begin(target, size.parse()?, Chance::from(seed.parse::<u64>()?))?;
    println!("exercising");
    while !stop.exists() {
        let begun = Instant::now();
        let what = exercise.step().with_context(|| format!("after {} steps", exercise.steps))?;
        exercise.steps += 1;
        if begun.elapsed() > exercise.slowest.0 {
            exercise.slowest = (begun.elapsed(), what);
        }
        if exercise.steps.is_multiple_of(100) {
            println!("steps {}", exercise.steps);
        }
    }
    exercise.forget_cached()?;
    let all = exercise.model.len() as u64;
    exercise.compare(0, all)?;
    let (slowest, what) = exercise.slowest;
    println!("all well: {} steps, slowest {} ms ({what})", exercise.steps, slowest.as_millis());
    Ok(())
}

struct Exercise {
    file: File,
    is_device: bool,
    size: u64,
    /// What the target must contain.
    model: Vec<u8>,
    chance: Chance,
    steps: u64,
    slowest: (Duration, &'static str),
}

impl Exercise {
    fn begin(target: &Path, size: u64, chance: Chance) -> Result<Exercise> {
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(!target.exists()).open(target)?;
        let is_device = file.metadata()?.file_type().is_block_device();
        let length = usize::try_from(size)?;
        file.write_all_at(&vec![0; length], 0)?;
        file.sync_all()?;
        let slowest = (Duration::ZERO, "nothing");
        Ok(Exercise { file, is_device, size, model: vec![0; length], chance, steps: 0, slowest })
    }

    fn step(&mut self) -> Result<&'static str> {
        let (at, end) = self.run();
        match self.chance.within(0..100) {
            0..40 => {
                let bytes = self.noise(end - at);
                self.file.write_all_at(&bytes, at)?;
                self.remember(at, &bytes);
                Ok("write")
            }
            40..70 => self.compare(at, end).map(|()| "read"),
            70..80 => {
                self.zero(at, end)?;
                Ok("zero")
            }
            80..85 if !self.is_device => {
                let length = self.chance.within(0..self.size);
                self.file.set_len(length)?;
                self.model.resize(usize::try_from(length)?, 0);
                Ok("truncate")
            }
            80..93 => {
                self.file.sync_data()?;
                Ok("fdatasync")
            }
            93..97 => {
                self.file.sync_all()?;
                Ok("fsync")
            }
            _ => {
                self.forget_cached()?;
                self.compare(at, end).map(|()| "read past the cache")
            }
        }
    }

    /// A range of bytes within the target.
    fn run(&mut self) -> (u64, u64) {
        let at = self.chance.within(0..self.size);
        let length = self.chance.within(1..RUN_MAX);
        (at, (at + length).min(self.size))
    }

    fn noise(&mut self, length: u64) -> Vec<u8> {
        let words = (0..=length / 8).flat_map(|_| self.chance.draw().to_le_bytes());
        words.take(usize::try_from(length).unwrap_or(usize::MAX)).collect()
    }

    fn remember(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let end = at + bytes.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at..end].copy_from_slice(bytes);
    }

    /// Makes a hole, which a device does in whole blocks only.
    fn zero(&mut self, at: u64, end: u64) -> Result<()> {
        let (at, end) = if self.is_device { (at / 4096 * 4096, end / 4096 * 4096) } else { (at, end) };
        if at >= end {
            return Ok(());
        }
        if self.is_device {
            // The kernel throws away what it has cached of the range before it finds that the driver cannot do it.
            self.file.sync_data()?;
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, how, at, end - at) {
            // A server need not be able to, and then the kernel's driver is not.
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
            other => other?,
        }
        let end = end.min(self.model.len() as u64);
        if at < end {
            let range = usize::try_from(at)?..usize::try_from(end)?;
            self.model[range].fill(0);
        }
        Ok(())
    }

    fn compare(&self, at: u64, end: u64) -> Result<()> {
        let end = end.min(self.model.len() as u64);
        if at >= end {
            return Ok(());
        }
        let mut found = vec![0; usize::try_from(end - at)?];
        self.file.read_exact_at(&mut found, at)?;
        let expected = &self.model[usize::try_from(at)?..usize::try_from(end)?];
        let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
        ensure!(wrong.is_none(), "wrong byte at {}", at + wrong.unwrap_or_default() as u64);
        Ok(())
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.file.sync_data()?;
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }
}
