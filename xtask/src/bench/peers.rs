//! `cargo xtask bench peers`: our server and those of Debian, on the same image, under the same client.

pub(super) mod bare;
mod guest;
mod report;
mod subject;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::paths;

use super::fio::{self, Load};
use super::machine::Machine;
use super::{Keep, image, server};
use crate::install;
use crate::janitor::Janitor;
use report::{Report, Row};
use subject::{ALL, Subject, Transport};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each server is measured under each load.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long a measurement takes.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Where the image on the real disk is made [default: the target directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Bytes of the image in MiB; it is written whole before anything is measured.
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// Only these loads; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = name)]
    load: Vec<String>,
    /// Only this transport; may be given several times.
    #[arg(long, value_enum, value_name = "TRANSPORT")]
    transport: Vec<Transport>,
    /// Only on this storage; may be given several times.
    #[arg(long, value_enum, value_name = "STORAGE")]
    storage: Vec<Storage>,
    #[command(flatten)]
    keep: Keep,
}

impl Args {
    fn wants(&self, storage: Storage) -> bool {
        self.storage.is_empty() || self.storage.contains(&storage)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Storage {
    /// A file in memory: what a server costs, and nothing else.
    Tmpfs,
    /// A file on the disk, through the page cache.
    Disk,
    /// A file in the memory of an emulated machine, through its kernel's driver.
    Guest,
}

const fn load(pattern: &'static str, block: &'static str, depth: u32, connections: u32) -> Load {
    Load { pattern, block, depth, connections, flush_every: 0 }
}

/// Their names, and what their rate counts.
const LOADS: [(&str, &str, Load); 10] = [
    ("read-1", "reads/s", load("randread", "4k", 1, 1)),
    ("read-32", "reads/s", load("randread", "4k", 32, 1)),
    ("read-16x4", "reads/s", load("randread", "4k", 16, 4)),
    ("read-32x64", "reads/s", load("randread", "4k", 32, 64)),
    ("write-1", "writes/s", load("randwrite", "4k", 1, 1)),
    ("write-32", "writes/s", load("randwrite", "4k", 32, 1)),
    ("write-16x4", "writes/s", load("randwrite", "4k", 16, 4)),
    ("flush-32", "writes/s", Load { flush_every: 32, ..load("randwrite", "4k", 32, 1) }),
    ("read-1m", "MB/s", load("read", "1m", 4, 1)),
    ("write-1m", "MB/s", load("write", "1m", 4, 1)),
];

fn name(text: &str) -> Result<String, String> {
    let names = LOADS.iter().map(|(name, ..)| *name);
    if names.clone().any(|name| name == text) {
        return Ok(text.to_owned());
    }
    Err(format!("say one of {}", names.collect::<Vec<_>>().join(", ")))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "there is nothing to measure");
    install::for_bench_peers(args.wants(Storage::Guest) && args.load.is_empty())?;
    vm_tests::guest::as_released();
    let ours = server::build()?;
    let home = args.dir.clone().unwrap_or_else(paths::target);
    let on_disk =
        tempfile::tempdir_in(&home).with_context(|| format!("cannot work in {}", home.display()))?;
    let in_memory = tempfile::tempdir_in("/dev/shm").context("cannot work in /dev/shm")?;
    let _janitors = [Janitor::of_directory(on_disk.path())?, Janitor::of_directory(in_memory.path())?];
    let bench = Bench {
        ours,
        size: args.size << 20,
        time: Duration::try_from_secs_f64(args.seconds).context("--seconds")?,
    };
    let mut report = Report::new(Machine::with_image_in(on_disk.path())?, args.rounds, args.seconds);
    for (storage, dir) in [(Storage::Tmpfs, in_memory.path()), (Storage::Disk, on_disk.path())] {
        if !args.wants(storage) {
            continue;
        }
        eprintln!("writing an image of {} MiB", args.size);
        image::write_whole(&dir.join("image"), bench.size).context("cannot write the image")?;
        for transport in [Transport::Unix, Transport::Tcp] {
            if args.transport.is_empty() || args.transport.contains(&transport) {
                bench.all_loads(args, &format!("{storage:?}, {transport:?}"), transport, dir, &mut report)?;
            }
        }
    }
    if args.wants(Storage::Guest) && args.load.is_empty() {
        guest::run(args.rounds, bench.time * 2, &mut report)?;
    }
    print!("{}", report.text());
    args.keep.write(&report.json()?, &report.svg())
}

/// How it is measured.
struct Bench {
    ours: PathBuf,
    size: u64,
    time: Duration,
}

impl Bench {
    fn all_loads(
        &self,
        args: &Args,
        place: &str,
        transport: Transport,
        dir: &Path,
        report: &mut Report,
    ) -> Result<()> {
        for (name, unit, load) in &LOADS {
            if !args.load.is_empty() && !args.load.iter().any(|wanted| wanted == name) {
                continue;
            }
            // Of the others one is enough: how they take so many is their affair.
            let of: &[&str] = if load.connections > 4 { &ALL[..2] } else { &ALL };
            report.begin(place, name, unit, of);
            for round in 0..args.rounds {
                eprintln!("{place}, {name}: round {} of {}", round + 1, args.rounds);
                for turn in 0..of.len() {
                    let subject = of[(round + turn) % of.len()];
                    let row = self.measure(subject, transport, load, *unit == "MB/s", dir);
                    report.add(subject, row.with_context(|| format!("{subject}, {place}, {name}"))?);
                }
            }
        }
        Ok(())
    }

    fn measure(
        &self,
        subject: &'static str,
        transport: Transport,
        load: &Load,
        by_bytes: bool,
        dir: &Path,
    ) -> Result<Row> {
        let server = Subject::start(subject, &self.ours, transport, &dir.join("image"), dir)?;
        let told = fio::run(load, &server.uri(), self.size, self.time, dir)?;
        let usage = server.usage()?;
        let requests = told.requests + told.flushes;
        Ok(Row {
            rate: if by_bytes { told.bytes_per_second / 1e6 } else { told.requests_per_second },
            p50_us: told.latency.p50 * 1e6,
            p99_us: told.latency.p99 * 1e6,
            cpu_us: usage.processor.as_secs_f64() * 1e6 / requests,
            memory_mib: usage.memory_peak_bytes as f64 / f64::from(1 << 20),
        })
    }
}
