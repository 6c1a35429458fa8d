//! `nbd-crash export` and `import`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use recording::Reader;

use crate::cli::Convert;
use crate::dm_log;

pub(super) fn export(convert: &Convert) -> anyhow::Result<ExitCode> {
    let recording =
        Reader::new(source(&convert.from)?).with_context(|| convert.from.display().to_string())?;
    let entries = dm_log::export(recording, target(&convert.to)?)?;
    println!("{}: {entries} entries", convert.to.display());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn import(convert: &Convert) -> anyhow::Result<ExitCode> {
    let log = source(&convert.from)?;
    let records = dm_log::import(log, convert.size, target(&convert.to)?)
        .with_context(|| convert.from.display().to_string())?;
    println!("{}: {records} records", convert.to.display());
    Ok(ExitCode::SUCCESS)
}

fn source(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

fn target(path: &Path) -> anyhow::Result<File> {
    File::create_new(path).with_context(|| format!("cannot make {}", path.display()))
}
