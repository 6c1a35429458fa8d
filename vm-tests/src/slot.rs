//! Keeps the number of machines running at once small, across test processes and checkouts that share a cache: an
//! emulated machine that gets half a processor misses deadlines which have nothing to do with what is tested.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::paths;

/// The right to run one machine; given back when dropped.
pub(crate) struct Slot {
    _lock: File,
    since: Instant,
}

impl Drop for Slot {
    /// Notes how long the machine ran, and for which test, where a run wants to know.
    fn drop(&mut self) {
        let Some(path) = std::env::var_os(RUN_TIMES) else { return };
        let (test, seconds) = (thread::current(), self.since.elapsed().as_secs_f64());
        let line = format!("{seconds:.1} {}\n", test.name().unwrap_or("(another thread)"));
        let file = File::options().append(true).create(true).open(path);
        let _only_a_table = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// The file to which the run time of each machine is appended: seconds, and the name of the test.
pub const RUN_TIMES: &str = "NBD_VM_RUN_TIMES";

const SLOTS_DEFAULT: usize = 2;
/// A wait longer than this is worth a word to whoever wonders.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until fewer machines run than `NBD_VM_SLOTS` allows.
pub(crate) fn take() -> Result<Slot> {
    let count =
        std::env::var("NBD_VM_SLOTS").ok().and_then(|count| count.parse().ok()).unwrap_or(SLOTS_DEFAULT);
    let directory = paths::cache().join("slots");
    fs::create_dir_all(&directory)?;
    let start = Instant::now();
    let mut told = false;
    loop {
        for number in 0..count.max(1) {
            let file = File::create(directory.join(number.to_string()))?;
            match file.try_lock() {
                Ok(()) => return Ok(Slot { _lock: file, since: Instant::now() }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).context("cannot lock a machine slot"),
            }
        }
        if !told && start.elapsed() > PATIENCE {
            told = true;
            eprintln!("waiting for one of {count} machine slots (NBD_VM_SLOTS)");
        }
        // Which lock falls first cannot be waited for.
        thread::sleep(Duration::from_millis(100));
    }
}
