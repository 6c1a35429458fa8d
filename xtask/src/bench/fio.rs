//! The load: fio's nbd engine, bounded in time, and what it tells.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Seconds after which a load that does not end is given up: a server has lost a request.
const LIMIT: &str = "120";

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) pattern: &'static str,
    pub(crate) block: &'static str,
    /// Requests in flight on each connection.
    pub(crate) depth: u32,
    pub(crate) connections: u32,
    /// A FLUSH after so many writes; never if 0.
    pub(crate) flush_every: u32,
}

/// What a run was like. Times are in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// READs or WRITEs.
    pub(crate) requests: f64,
    pub(crate) flushes: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// Of a READ or WRITE.
    pub(crate) latency: Percentiles,
    /// Of FLUSH; none if there was none.
    pub(crate) flush: Option<Percentiles>,
}

/// How long half of all, and all but one in a hundred, took at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Puts the load on the export at `uri` for so long; `dir` is for fio's report.
pub(crate) fn run(load: &Load, uri: &str, size: u64, time: Duration, dir: &Path) -> Result<Told> {
    let report = dir.join("fio.json");
    let mut fio = Command::new("setpriv");
    fio.args([
        "--pdeathsig",
        "KILL",
        "timeout",
        LIMIT,
        "fio",
        "--name=load",
        "--ioengine=nbd",
        "--output-format=json",
    ]);
    // Addresses are the same in every run and mode.
    fio.args(["--randrepeat=1", "--time_based", "--percentile_list=50:99"]);
    fio.arg(format!("--output={}", report.display())).arg(format!("--uri={uri}"));
    fio.arg(format!("--rw={}", load.pattern)).arg(format!("--bs={}", load.block));
    fio.arg(format!("--iodepth={}", load.depth)).arg(format!("--size={size}"));
    fio.arg(format!("--numjobs={}", load.connections)).arg("--group_reporting");
    fio.arg(format!("--runtime={}", time.as_secs_f64()));
    if load.flush_every > 0 {
        fio.arg(format!("--fsync={}", load.flush_every));
    }
    let out = fio.current_dir(dir).stdin(Stdio::null()).output().context("cannot run fio")?;
    ensure!(out.status.success(), "fio failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    told_in(&std::fs::read_to_string(&report)?)
}

/// What its report tells.
pub(crate) fn told_in(report: &str) -> Result<Told> {
    // Remarks come first.
    let report: Value = serde_json::from_str(&report[report.find('{').unwrap_or(0)..])?;
    told(&report["jobs"][0])
}

fn told(job: &Value) -> Result<Told> {
    let number =
        |value: &Value| value.as_f64().with_context(|| format!("fio said {value} where a number is due"));
    let percentiles = |latency: &Value| -> Result<Percentiles> {
        let percentile = |name: &str| anyhow::Ok(number(&latency["percentile"][name])? / 1e9);
        Ok(Percentiles { p50: percentile("50.000000")?, p99: percentile("99.000000")? })
    };
    let (read, write, sync) = (&job["read"], &job["write"], &job["sync"]);
    let done = if number(&read["total_ios"])? > 0.0 { read } else { write };
    let flushes = sync["total_ios"].as_f64().unwrap_or(0.0);
    ensure!(number(&job["error"])? == 0.0, "fio met an error: {job}");
    Ok(Told {
        requests: number(&done["total_ios"])?,
        flushes,
        requests_per_second: number(&done["iops"])?,
        bytes_per_second: number(&done["bw_bytes"])?,
        latency: percentiles(&done["clat_ns"])?,
        flush: if flushes > 0.0 { Some(percentiles(&sync["lat_ns"])?) } else { None },
    })
}
