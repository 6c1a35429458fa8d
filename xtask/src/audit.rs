//! Audits NBD servers, ours and others: what had each done before it replied? The checks are in the `tests` crate;
//! this installs what they need and runs them.

use anyhow::Result;
use clap::ValueEnum;

use crate::install;
use crate::run::{cargo, visibly};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose server
    #[arg(long, value_enum, default_value = "ours")]
    server: Server,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// The names that the audit itself takes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Server {
    Ours,
    Nbdkit,
    QemuNbd,
    /// The one of the nbd package
    #[value(name = "nbd-server")]
    Debians,
    All,
}

impl Server {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Server::Ours => &[],
            Server::Nbdkit => &["nbdkit"],
            Server::QemuNbd => &["qemu-utils"],
            Server::Debians => &["nbd-server"],
            Server::All => &["nbdkit", "qemu-utils", "nbd-server"],
        }
    }
}

/// `cargo xtask audit`
pub(crate) fn run(args: &Args) -> Result<()> {
    install::for_audit(args.server.packages())?;
    let server = args.server.to_possible_value().expect("no variant is skipped");
    let mut audit = cargo();
    audit.args([
        "run",
        "--quiet",
        "--package",
        "tests",
        "--bin",
        "audit",
        "--",
        "--server",
        server.get_name(),
    ]);
    if args.json {
        audit.arg("--json");
    }
    visibly(&mut audit)
}
