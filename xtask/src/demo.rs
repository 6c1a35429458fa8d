//! The story a newcomer watches: a file served by our server becomes /dev/nbd0 by our tool, a file system
//! lives on it, the power fails, and everything that was promised is there.

use anyhow::{Result, bail};

use crate::install;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use this machine's own nbd driver instead of a virtual machine.
    #[arg(long)]
    host: bool,
}

/// `cargo xtask demo`
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.host {
        bail!("the demo on the host's own driver is not written yet");
    }
    install::for_demo()?;
    bail!("the demo is not written yet")
}
