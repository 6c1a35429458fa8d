//! What things cost, measured side by side: every round runs each subject once, in an order that changes from round to
//! round, and what is told are medians of ratios within a round, with their spread.

mod durability;
mod figures;
mod fio;
mod image;
mod machine;
mod mail;
mod peers;
mod record;
mod server;
mod svg;
mod tls;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Measures what things cost on this machine.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// What each durability mode costs, compared with writeback, and what it can lose.
    Durability(durability::Args),
    /// What requests cost here and in nbdkit, qemu-nbd and nbd-server.
    Peers(peers::Args),
    /// What a server pays for recording what it is asked.
    Record(record::Args),
    /// What encryption costs a device, by the kernel and by nbd-client's proxy.
    Tls(tls::Args),
    /// The server that can do least, for `peers` to compare with.
    #[command(hide = true)]
    Bare(peers::bare::Args),
}

/// Where else than on the terminal a report goes.
#[derive(clap::Args)]
struct Keep {
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw them into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Keep {
    fn write(&self, json: &str, svg: &str) -> Result<()> {
        for (file, text) in [(&self.json, json), (&self.svg, svg)] {
            if let Some(file) = file {
                std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Ok(())
    }
}

/// `cargo xtask bench`
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Durability(args) => durability::run(args),
        Bench::Peers(args) => peers::run(args),
        Bench::Record(args) => record::run(args),
        Bench::Tls(args) => tls::run(args),
        Bench::Bare(args) => peers::bare::run(args),
    }
}
