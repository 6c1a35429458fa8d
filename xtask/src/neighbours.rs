//! Puts a server into trouble after trouble, and tells how long a good client waits meanwhile. The troubles are in the
//! `tests` crate; this builds what is shipped and runs them as root.

use anyhow::{Result, ensure};

use crate::run::{cargo, visibly};
use crate::{apt, install};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long all of it takes
    #[arg(long, value_name = "N", default_value = "5")]
    minutes: u64,
    /// Only clients that send and read a byte now and then, and a good client's latencies among them
    #[arg(long)]
    drip: bool,
}

/// `cargo xtask neighbours`
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(apt::is_root(), "mounts and loop devices need root: run this command as root");
    install::for_failing_disk(false)?;
    let mut troubles = cargo();
    troubles.args(["run", "--quiet", "--release", "--package", "tests", "--bin", "neighbours", "--"]);
    troubles.args(["--minutes", &args.minutes.to_string()]);
    troubles.args(args.drip.then_some("--drip"));
    visibly(&mut troubles)
}
