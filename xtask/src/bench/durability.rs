//! `cargo xtask bench durability`: the price list of the four modes.

mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{guest, paths};

use super::fio::{self, Load};
use super::machine::Machine;
use super::{Keep, image, mail, server};
use crate::install;
use crate::janitor::Janitor;
use report::{Report, Row};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each mode is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a measurement takes.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Where the image is made, on the disk that is to be measured [default: the target directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Bytes of the image in MiB; it is written whole before anything is measured.
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// Only these workloads; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = name)]
    workload: Vec<String>,
    /// Leave out the workload that needs a virtual machine.
    #[arg(long)]
    no_vm: bool,
    #[command(flatten)]
    keep: Keep,
}

/// The modes, and what each can lose.
pub(crate) const MODES: [(&str, &str); 4] = [
    ("writethrough", "nothing acknowledged"),
    ("writeback", "host power: writes since the last FLUSH"),
    ("early-ack", "server kill or host power: writes since the last FLUSH"),
    ("unsafe", "host power: anything, the file system included"),
];
/// What the others are compared with.
pub(crate) const UNIT: &str = "writeback";

/// Something to do to a disk.
struct Workload {
    name: &'static str,
    /// What its throughput counts, per second.
    counts: &'static str,
    what: &'static str,
    /// None: the mail server in a virtual machine.
    load: Option<Load>,
}

/// Depth 1 where every write waits for a FLUSH, as a database's log does; else what keeps a disk busy.
const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "flush-each",
        counts: "writes/s",
        what: "random 4 KiB writes, each followed by a FLUSH, one at a time",
        load: Some(Load { pattern: "randwrite", block: "4k", depth: 1, connections: 1, flush_every: 1 }),
    },
    Workload {
        name: "flush-32",
        counts: "writes/s",
        what: "random 4 KiB writes, a FLUSH after every 32, 32 in flight",
        load: Some(Load { pattern: "randwrite", block: "4k", depth: 32, connections: 1, flush_every: 32 }),
    },
    Workload {
        name: "never",
        counts: "writes/s",
        what: "random 4 KiB writes, never a FLUSH, 32 in flight",
        load: Some(Load { pattern: "randwrite", block: "4k", depth: 32, connections: 1, flush_every: 0 }),
    },
    Workload {
        name: "sequential",
        counts: "MB/s",
        what: "sequential 1 MiB writes, never a FLUSH, 4 in flight",
        load: Some(Load { pattern: "write", block: "1m", depth: 4, connections: 1, flush_every: 0 }),
    },
    Workload {
        name: "mail",
        counts: "files/s",
        what: "ext4 in an emulated machine: create, write, fsync, rename, fsync the directory",
        load: None,
    },
];

fn name(text: &str) -> Result<String, String> {
    let names = WORKLOADS.iter().map(|workload| workload.name);
    if names.clone().any(|name| name == text) {
        return Ok(text.to_owned());
    }
    Err(format!("say one of {}", names.collect::<Vec<_>>().join(", ")))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen = |workload: &&Workload| {
        let named = args.workload.is_empty() || args.workload.iter().any(|name| name == workload.name);
        named && (workload.load.is_some() || !args.no_vm)
    };
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(chosen).collect();
    ensure!(!workloads.is_empty() && args.rounds > 0, "there is nothing to measure");
    install::for_bench(workloads.iter().any(|workload| workload.load.is_none()))?;
    guest::as_released();
    let binary = server::build()?;
    let home = args.dir.clone().unwrap_or_else(paths::target);
    let dir = tempfile::tempdir_in(&home).with_context(|| format!("cannot work in {}", home.display()))?;
    let _janitor = Janitor::of_directory(dir.path())?;
    let bench = Bench {
        binary,
        image: dir.path().join("image"),
        dir: dir.path().to_owned(),
        size: args.size << 20,
        time: Duration::try_from_secs_f64(args.seconds).context("--seconds")?,
    };
    bench.fill()?;
    let mut report = Report::new(Machine::with_image_in(dir.path())?, args.rounds, args.seconds, args.size);
    for workload in &workloads {
        report.begin(workload.name, workload.what, workload.counts);
        for round in 0..args.rounds {
            for turn in 0..MODES.len() {
                let (mode, _) = MODES[(round + turn) % MODES.len()];
                eprintln!("{}: round {} of {}, {mode}", workload.name, round + 1, args.rounds);
                report.add(mode, round, bench.measure(workload, mode)?);
            }
        }
    }
    print!("{}", report.text());
    args.keep.write(&report.json()?, &report.svg())
}

/// Where and how it is measured.
struct Bench {
    binary: PathBuf,
    image: PathBuf,
    dir: PathBuf,
    size: u64,
    time: Duration,
}

impl Bench {
    /// Writes the image whole, so that no mode pays for the first touch of a block.
    fn fill(&self) -> Result<()> {
        eprintln!("writing an image of {} MiB", self.size >> 20);
        image::write_whole(&self.image, self.size).context("cannot write the image")
    }

    fn measure(&self, workload: &Workload, mode: &str) -> Result<Row> {
        let Some(load) = &workload.load else {
            let rate = mail::per_second(mode, &self.image, self.time * 2)?;
            return Ok(Row { throughput: Some(rate), ..Row::default() });
        };
        let image = self.image.to_str().context("the image's path must be text")?;
        let server = server::Server::start(&self.binary, &self.dir, &["--durability", mode, image])?;
        let told = fio::run(load, &server.uri(), self.size, self.time, &self.dir)?;
        let usage = server.usage()?;
        // Whatever was not durable is made so before the next one is measured.
        server.stop()?;
        ensure!(load.flush_every == 0 || told.flushes > 0.0, "fio sent no FLUSH");
        let by_bytes = workload.counts == "MB/s";
        Ok(Row {
            throughput: Some(if by_bytes { told.bytes_per_second / 1e6 } else { told.requests_per_second }),
            write_p50_us: Some(told.latency.p50 * 1e6),
            write_p99_us: Some(told.latency.p99 * 1e6),
            flush_p50_us: told.flush.map(|flush| flush.p50 * 1e6),
            flush_p99_us: told.flush.map(|flush| flush.p99 * 1e6),
            cpu_us_per_request: Some(usage.processor.as_secs_f64() * 1e6 / (told.requests + told.flushes)),
            memory_peak_mib: Some(usage.memory_peak_bytes as f64 / f64::from(1 << 20)),
        })
    }
}
