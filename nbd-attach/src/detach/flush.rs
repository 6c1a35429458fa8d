//! Having everything that was written reach the server, in a process that can be left behind if it does not.

use super::{DetachError, object};
use crate::bounded::{Child, TooSlow, bounded};
use crate::config::Insistence;
use crate::sysfs::DeviceDir;
use crate::usage::Use;
use nix::libc::EIO;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

/// A server may have gigabytes of ours to put on its disk.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);
/// Who insists has given up on a server that takes longer than this.
const FORCED_FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// Why written data may not have reached the server.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// It said so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It says nothing.
    #[error("the server gave {0}")]
    Silent(#[from] TooSlow),
}

pub(super) async fn flush(
    device: &DeviceDir,
    insist: Insistence,
    uses: &[Use],
    held: Option<&File>,
) -> Result<(), DetachError> {
    if held.is_none() {
        // It could not even be opened.
        return Ok(());
    }
    let mounts = uses.iter().filter_map(|used| match used {
        Use::Mount(point) => Some(point.clone()),
        _ => None,
    });
    let files: Vec<PathBuf> = mounts.chain([device.index.node()]).collect();
    let patience = match insist {
        Insistence::Refuse => FLUSH_PATIENCE,
        Insistence::Force => FORCED_FLUSH_PATIENCE,
    };
    let flushed = bounded(patience, move || flush_in_child(&files));
    let error = match flushed.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => FlushError::Io(error),
        Err(slow) => FlushError::Silent(slow),
    };
    object(insist, DetachError::Flush { device: device.index, error })
}

/// A process that waits for a dead server cannot end, so the waiting is left to another one.
fn flush_in_child(files: &[PathBuf]) -> io::Result<()> {
    Child::of_ours(std::iter::once("flush".into()).chain(files.iter().cloned())).finished()
}

/// What that process does: flushes devices, and file systems by any file on them. Its exit code is
/// the error number.
pub fn flush_files(files: &[PathBuf]) -> i32 {
    let flush_one = |path: &PathBuf| {
        let file = File::open(path)?;
        if file.metadata()?.file_type().is_block_device() {
            file.sync_all()
        } else {
            Ok(nix::unistd::syncfs(file)?)
        }
    };
    let flushed: io::Result<()> = files.iter().try_for_each(flush_one);
    flushed.map_or_else(|error| error.raw_os_error().unwrap_or(EIO), |()| 0)
}
