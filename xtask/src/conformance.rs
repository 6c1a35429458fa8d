//! Probes NBD servers, ours and others: where do they leave the protocol? The probes are in the `tests` crate; this
//! installs what they need and runs them.

use anyhow::Result;

use crate::install;
use crate::run::{cargo, visibly};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The address of any server, as an NBD URI; its export is written to. Without one: ours over Unix, TCP and TLS,
    /// and nbdkit, qemu-nbd and nbd-server
    uri: Vec<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// `cargo xtask conformance`
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.uri.is_empty() {
        install::for_conformance()?;
        // The programs that are probed.
        visibly(cargo().args(["build", "--quiet", "--package", "nbd-server"]))?;
    }
    let mut probes = cargo();
    probes.args(["run", "--quiet", "--package", "tests", "--bin", "conformance", "--"]).args(&args.uri);
    if args.json {
        probes.arg("--json");
    }
    visibly(&mut probes)
}
