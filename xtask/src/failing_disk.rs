//! Serves disks that fail in the kernel, and looks up on the medium what was answered as durable. The trials are in the
//! `tests` crate; this installs what they need, builds what is shipped and runs them as root.

use anyhow::{Result, ensure};

use crate::run::{cargo, visibly};
use crate::{apt, install};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of 16 writes for each mode and kind of storage; ten thousand take two minutes
    #[arg(long, value_name = "N", default_value = "10000")]
    rounds: u64,
    /// Only this durability mode
    #[arg(long, value_name = "MODE", value_parser = ["writethrough", "writeback", "early-ack"])]
    durability: Option<String>,
    /// Only the kinds of storage whose name contains this, such as "device" or "--direct"
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    storage: Option<String>,
    /// Also nbdkit and qemu-nbd
    #[arg(long)]
    peers: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// `cargo xtask failing-disk`
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(apt::is_root(), "loop devices and mounts need root: run this command as root");
    install::for_failing_disk(args.peers)?;
    let mut trials = cargo();
    trials.args(["run", "--quiet", "--release", "--package", "tests", "--bin", "failing-disk", "--"]);
    trials.args(["--rounds", &args.rounds.to_string()]);
    for (flag, value) in [("--durability", &args.durability), ("--storage", &args.storage)] {
        if let Some(value) = value {
            trials.arg(format!("{flag}={value}"));
        }
    }
    let switches = [("--peers", args.peers), ("--json", args.json)];
    trials.args(switches.iter().filter(|(_, on)| *on).map(|(flag, _)| *flag));
    visibly(&mut trials)
}
