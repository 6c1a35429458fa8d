//! `nbd-crash export` and `import`.

use std::fs::{self, File};
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
    made(convert, |to| dm_log::export(recording, to), "entries")
}

pub(super) fn import(convert: &Convert) -> anyhow::Result<ExitCode> {
    let log = source(&convert.from)?;
    made(convert, |to| dm_log::import(log, convert.size, to), "records")
}

/// Makes a file, whole or not at all.
fn made(
    convert: &Convert,
    make: impl FnOnce(File) -> anyhow::Result<u64>,
    what: &str,
) -> anyhow::Result<ExitCode> {
    let to = &convert.to;
    let file = File::create_new(to).with_context(|| format!("cannot make {}", to.display()))?;
    let count = make(file).with_context(|| convert.from.display().to_string()).inspect_err(|_| {
        // It was new; what is left of it would only mislead.
        let _ = fs::remove_file(to);
    })?;
    logging::print(format!("{}: {count} {what}\n", to.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn source(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}
