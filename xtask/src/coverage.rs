//! How many lines of the protocol crate its own tests reach, by cargo-llvm-cov.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::install;
use crate::run::{cargo, visibly};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Percentage of lines below which the command fails
    #[arg(long, default_value_t = 90)]
    at_least: u8,
}

/// `cargo xtask coverage`
pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = Tools::find()?;
    install::for_coverage(&tools.package)?;
    let mut coverage = cargo();
    coverage.args(["llvm-cov", "--package", "common", "--summary-only"]);
    coverage.args(["--fail-under-lines", &args.at_least.to_string()]);
    coverage.env("LLVM_COV", &tools.cov).env("LLVM_PROFDATA", &tools.profdata);
    visibly(&mut coverage)
}

/// LLVM's tools of the version that the compiler is made with: others cannot read what it writes. They are Debian's,
/// because a toolchain may come without them.
struct Tools {
    package: String,
    cov: PathBuf,
    profdata: PathBuf,
}

impl Tools {
    fn find() -> Result<Tools> {
        let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
        let major = major(&String::from_utf8_lossy(&output.stdout)).context("rustc names no LLVM version")?;
        Ok(Tools {
            package: format!("llvm-{major}"),
            cov: format!("/usr/bin/llvm-cov-{major}").into(),
            profdata: format!("/usr/bin/llvm-profdata-{major}").into(),
        })
    }
}

/// From `LLVM version: 22.1.2`.
fn major(said: &str) -> Option<u32> {
    let version = said.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_compiler_tells_its_llvm() {
        assert_eq!(super::major("rustc 1.95.0\nhost: x\nLLVM version: 22.1.2\n"), Some(22));
    }
}
