//! Serves disks that fail in the kernel, and looks up on the medium what was answered as durable. The trials are in the
//! `tests` crate; this installs what they need, builds what is shipped and runs them as root.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::janitor::{Janitor, quoted};
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
    /// Only this kind of storage, as the table calls it, such as "file --direct"; may be given several times
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    storage: Vec<String>,
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
    let disks = tempfile::tempdir()?;
    let _janitor = Janitor::watch(&take_down(disks.path()))?;
    let mut trials = cargo();
    trials.args(["run", "--quiet", "--release", "--package", "tests", "--bin", "failing-disk", "--"]);
    trials.env("TMPDIR", disks.path());
    trials.args(["--rounds", &args.rounds.to_string()]);
    trials.args(args.durability.iter().map(|mode| format!("--durability={mode}")));
    trials.args(args.storage.iter().map(|name| format!("--storage={name}")));
    let switches = [("--peers", args.peers), ("--json", args.json)];
    trials.args(switches.iter().filter(|(_, on)| *on).map(|(flag, _)| *flag));
    visibly(&mut trials)
}

/// The script that takes mounts and loop devices below a directory down, which an interrupted trial leaves behind.
fn take_down(directory: &Path) -> String {
    let below = format!("{}/*", quoted(directory));
    let unmount = format!(
        "tac /proc/mounts | while read -r _ at _; do case $at in {below}) umount -l $at;; esac; done"
    );
    let detach = format!("case $file in {below}) losetup -d $device;; esac");
    format!("{unmount}\nlosetup -nO NAME,BACK-FILE | while read -r device file; do {detach}; done")
}
