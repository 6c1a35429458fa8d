//! The guest's workload for crash tests. `promise write DIR WRITERS SEED` writes files for ever, makes each durable as
//! mail servers and databases do, and announces it only then; it ends with 1 when the file system gives it an error,
//! which it must not hide. `promise verify DIR` reads announcements and says which are broken. `promise noise NAME LEN`
//! prints bytes that can be had again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use vm_tests::{Chance, promise};

/// Few enough for files to be replaced again and again, enough to look for one that was not.
const SLOTS: u64 = 12;
const LEN_MAX: u64 = 96 * 1024;

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", dir, writers, seed] => write(Path::new(dir), writers.parse()?, seed.parse()?),
        ["verify", dir] => verify(Path::new(dir)),
        ["noise", name, len] => {
            io::stdout().write_all(&promise::contents(name, 0, len.parse()?))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("say: promise write DIR WRITERS SEED | promise verify DIR | promise noise NAME LEN"),
    }
}

fn write(dir: &Path, writers: u64, seed: u64) -> Result<ExitCode> {
    // Versions of a later life are higher than those of all lives before, and its logs are new.
    let found = found(dir)?;
    let last = found.values().flatten().max().copied().unwrap_or(0);
    let used = |first: &u64| found.keys().any(|name| name.starts_with(&format!("log{first}-")));
    let first = (last + 1..).find(|first| !used(first)).context("no version is left")?;
    let told = Mutex::new(0);
    let ends = thread::scope(|scope| {
        let lives: Vec<_> = (0..writers)
            .map(|number| {
                let writer = Writer { dir, number, first, told: &told };
                scope.spawn(move || writer.live(Chance::from(seed + number)))
            })
            .collect();
        lives.into_iter().map(|life| life.join().expect("a writer does not panic")).collect::<Vec<_>>()
    });
    for error in ends.into_iter().filter_map(Result::err) {
        println!("stopped: {error}");
    }
    Ok(ExitCode::FAILURE)
}

struct Writer<'a> {
    dir: &'a Path,
    number: u64,
    first: u64,
    told: &'a Mutex<u64>,
}

impl Writer<'_> {
    /// Replaces files and appends to a log, until an error.
    fn live(&self, mut chance: Chance) -> io::Result<()> {
        self.settle_down()?;
        let log_name = format!("log{}-{}", self.first, self.number);
        let mut log = OpenOptions::new().create_new(true).append(true).open(self.dir.join(&log_name))?;
        File::open(self.dir)?.sync_all()?;
        let mut records = 0;
        for version in self.first.. {
            if version % 3 == 0 {
                log.write_all(&promise::contents(&log_name, records, promise::RECORD))?;
                log.sync_data()?;
                records += 1;
                self.promise(&log_name, records)?;
            } else {
                let name = format!("file{}-{}", self.number, chance.within(0..SLOTS));
                self.replace(&name, version, chance.within(100..LEN_MAX))?;
                self.promise(&name, version)?;
            }
        }
        Ok(())
    }

    /// Stays on one processor, each writer on another: the driver uses a connection per processor, and which of them
    /// are used must not be the scheduler's whim.
    fn settle_down(&self) -> io::Result<()> {
        let processors = thread::available_parallelism()?.get();
        let mut mine = CpuSet::new();
        mine.set(usize::try_from(self.number).map_err(io::Error::other)? % processors);
        sched_setaffinity(None, &mine).map_err(io::Error::from)
    }

    fn replace(&self, name: &str, version: u64, len: u64) -> io::Result<()> {
        let made = self.dir.join(format!("{name}.new"));
        let mut file = File::create(&made)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        file.write_all(&promise::contents(name, version, len))?;
        file.sync_all()?;
        fs::rename(made, self.dir.join(name))?;
        File::open(self.dir)?.sync_all()
    }

    fn promise(&self, name: &str, version: u64) -> io::Result<()> {
        // When the fsync returned: whoever crashes later had a part in it, whoever was dead had none.
        let uptime = fs::read_to_string("/proc/uptime")?;
        let uptime = uptime.split(' ').next().unwrap_or_default();
        let mut told = self.told.lock().expect("a writer does not panic");
        *told += 1;
        writeln!(io::stdout(), "#{told} promised {name} {version} at {uptime}")
    }
}

fn verify(dir: &Path) -> Result<ExitCode> {
    let mut list = String::new();
    io::stdin().read_to_string(&mut list)?;
    let found = found(dir)?;
    let mut lost = 0;
    let mut complain = |what: String| {
        lost += 1;
        println!("lost {what}");
    };
    for line in list.lines() {
        let (name, version) = line.split_once(' ').context("not a promise")?;
        let version: u64 = version.parse()?;
        match found.get(name) {
            None => complain(format!("{name}: promised in version {version} and not there")),
            Some(Ok(there)) if *there < version => {
                complain(format!("{name}: promised in version {version} and is {there}"));
            }
            Some(_) => {}
        }
    }
    // Also what nobody promised: a file has its final name only when it is complete.
    for (name, broken) in found.iter().filter_map(|(name, state)| Some((name, state.as_ref().err()?))) {
        complain(format!("{name}: {broken}"));
    }
    println!("{} promised, {lost} lost", list.lines().count());
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every finished file with its version, or what is wrong with it.
fn found(dir: &Path) -> Result<BTreeMap<String, Result<u64, String>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if (name.starts_with("file") || name.starts_with("log")) && !name.ends_with(".new") {
            let state = match fs::read(dir.join(&name)) {
                Err(error) => Err(format!("cannot be read: {error}")),
                Ok(bytes) if name.starts_with("log") => Ok(whole_records(&name, &bytes)),
                Ok(bytes) => promise::whole(&name, &bytes),
            };
            found.insert(name, state);
        }
    }
    Ok(found)
}

/// How many records a log begins with; the one being written at the crash may be anything.
fn whole_records(name: &str, bytes: &[u8]) -> u64 {
    let right = |(number, record): &(u64, &[u8])| promise::whole(name, record) == Ok(*number);
    (0..).zip(bytes.chunks(promise::RECORD)).take_while(right).count() as u64
}
