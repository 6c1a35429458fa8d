//! What recording costs: a server in memory with `--record` and without, in turn, under writes and FLUSHes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::figures::{Spread, short};
use super::fio::{self, Load};
use super::server::{self, Server};
use crate::install;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load each time.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// Bytes of the export.
const SIZE: u64 = 64 << 20;
const LOADS: [(&str, Load); 2] = [
    (
        "4 KiB writes, 16 in flight, a FLUSH after every 32",
        Load { pattern: "randwrite", block: "4k", depth: 16, connections: 1, flush_every: 32 },
    ),
    (
        "256 KiB writes, 4 in flight",
        Load { pattern: "write", block: "256k", depth: 4, connections: 1, flush_every: 0 },
    ),
];

/// Requests per second, and microseconds of processor time per request.
struct Row {
    rate: f64,
    cpu: f64,
}

/// `cargo xtask bench record`
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "there is nothing to measure");
    install::for_bench(false)?;
    let binary = server::build()?;
    let dir = tempfile::tempdir().context("cannot work in the temporary directory")?;
    let time = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
    for (name, load) in LOADS {
        let mut rows: [Vec<Row>; 2] = Default::default();
        for round in 0..args.rounds {
            for turn in 0..2 {
                let recorded = (round + turn) % 2;
                eprintln!("{name}: round {} of {}", round + 1, args.rounds);
                let log = dir.path().join("log");
                let log_text = log.to_str().context("a temporary name is text")?;
                let size = format!("memory:{SIZE}");
                let words = ["--record", log_text, &size];
                let server = Server::start(&binary, dir.path(), &words[2 - 2 * recorded..])?;
                let told = fio::run(&load, &server.uri(), SIZE, time, dir.path())?;
                let usage = server.usage()?;
                server.stop()?;
                if recorded == 1 {
                    ensure!(fs::metadata(&log)?.len() > 1 << 20, "nothing was recorded");
                    fs::remove_file(&log)?;
                }
                let cpu = usage.processor.as_secs_f64() * 1e6 / (told.requests + told.flushes);
                rows[recorded].push(Row { rate: told.requests_per_second, cpu });
            }
        }
        let [plain, recorded] = &rows;
        let ratio = |what: fn(&Row) -> f64| {
            let pairs = recorded.iter().zip(plain).map(|(one, other)| (Some(what(one)), Some(what(other))));
            Spread::of_ratios(pairs).context("nothing was measured")
        };
        let told = |it: Spread| format!("{} ({} to {})", short(it.median), short(it.min), short(it.max));
        println!("{name}: recorded, {} times the rate", told(ratio(|row| row.rate)?));
        println!("{name}: recorded, {} times the processor time per request", told(ratio(|row| row.cpu)?));
    }
    Ok(())
}
