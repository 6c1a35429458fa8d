//! The story a newcomer watches: a file served by our server becomes /dev/nbd0 by our tool, a file system
//! lives on it, the power fails, and everything that was promised is there.

mod cut;
mod host;
mod machine;
mod screen;
mod stage;

use anyhow::Result;
use vm_tests::{Series, guest};

use crate::install;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use this machine's own nbd driver instead of a virtual machine; the server is killed instead of the power
    /// cut, and everything is cleaned up.
    #[arg(long)]
    host: bool,
    /// The kernel of the virtual machine: 6.1, 6.12 or 7, the newest that Debian has of it.
    #[arg(long, value_name = "SERIES", default_value = "6.12", value_parser = series, conflicts_with = "host")]
    kernel: Series,
}

/// `cargo xtask demo`
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.host {
        return host::tell();
    }
    install::for_demo(args.kernel)?;
    eprintln!("building nbd-server and nbd-attach");
    guest::build_visibly()?;
    cut::tell(args.kernel)
}

fn series(text: &str) -> Result<Series, String> {
    let known = Series::ALL.into_iter().find(|series| series.to_string() == text);
    known.ok_or_else(|| format!("say one of {}", Series::ALL.map(|series| series.to_string()).join(", ")))
}
