//! Opening and locking what is to be served.

use std::fs::{FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::lock::{Lock, Locks};
use super::{Definition, Plan};
use crate::backend::block::BlockBackend;
use crate::backend::file::FileBackend;
use crate::backend::memory::MemoryBackend;
use crate::backend::null::NullBackend;
use crate::backend::{Access, Opened as How};
use crate::cli::parse_size;
use crate::device::{Device, layered, leaf};
use crate::durability::Mode;
use crate::durability::epoch::Epoch;
use crate::engine::Pool;
use crate::epoch_store;
use crate::export::{Export, Source};
use crate::layer::window::Window;

/// Sizes typed by a person must be a multiple of this many bytes.
const SECTOR: u64 = 512;

/// Opens what is to be served.
pub(super) struct Opener<'a> {
    state_dir: Option<PathBuf>,
    pool: &'a Pool,
    locks: &'a Locks,
}

/// What is served, its epoch, and the file or device that it is, if it is one, with its lock.
type Opened = (Arc<dyn Device>, Epoch, Option<(Source, Arc<Lock>)>);

impl Opener<'_> {
    /// `state_dir` is where epochs are kept that cannot be kept with what is served.
    pub(super) fn new<'a>(state_dir: Option<PathBuf>, pool: &'a Pool, locks: &'a Locks) -> Opener<'a> {
        Opener { state_dir: state_dir.or_else(given_state_dir), pool, locks }
    }

    /// Opens and locks an export.
    pub(super) fn export(&self, definition: &Definition) -> anyhow::Result<Arc<Export>> {
        let Definition { name, serve, size, access, direct, mode, limits, text, admission } = definition;
        let how = How { access: *access, direct: *direct };
        let (mut storage, epoch, source) = self.open(serve, how, *mode)?;
        if let Some(size) = *size {
            let has = storage.shape().size;
            ensure!(size <= has, "{serve} has {has} bytes, fewer than the {size} that are to be served");
            storage = layered(Box::new(Window { size }), storage);
        }
        let export = Export::new(name.clone(), storage, *mode, *limits, epoch);
        export.present(text.clone(), admission.clone());
        source.into_iter().for_each(|(source, lock)| export.serves(source, lock));
        Ok(Arc::new(export))
    }

    fn open(&self, spec: &str, how: How, mode: Mode) -> anyhow::Result<Opened> {
        if let Some(size) = spec.strip_prefix("memory:") {
            let memory = MemoryBackend::new(typed_size(spec, size)?).context(spec.to_owned())?;
            return Ok((leaf(memory), epoch_store::volatile(), None));
        }
        if let Some(size) = spec.strip_prefix("null:") {
            let null = NullBackend { size: typed_size(spec, size)? };
            return Ok((leaf(null), epoch_store::nothing_to_lose(), None));
        }
        self.open_path(Path::new(spec), how, mode)
    }

    fn open_path(&self, path: &Path, how: How, mode: Mode) -> anyhow::Result<Opened> {
        let (shown, kind, access) = (path.display(), kind_of(path)?, how.access);

        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // On a block device O_EXCL means: not while it is mounted or otherwise claimed.
        let claim = kind.is_block_device() && access == Access::ReadWrite;
        let flag = |set: bool, flag| if set { flag } else { 0 };
        options.custom_flags(flag(claim, nix::libc::O_EXCL) | flag(how.direct, nix::libc::O_DIRECT));
        let file = options.open(path).map_err(|error| explain_open(path, how, &error))?;
        let lock = self.locks.take(path, &file, access)?;
        let epoch = match access {
            Access::ReadWrite => {
                let opened = epoch_store::Opened { file: &file, path, mode };
                epoch_store::open(&opened, self.state_dir.as_deref(), self.pool)?
            }
            Access::ReadOnly => epoch_store::nothing_to_lose(),
        };
        let source = Source::of(path, &file).with_context(|| format!("cannot tell what {shown} is"))?;
        let device = if kind.is_block_device() {
            leaf(BlockBackend::new(file, how, self.pool.share()).context(format!("{shown}"))?)
        } else {
            leaf(FileBackend::new(file, how, self.pool.share()).context(format!("{shown}"))?)
        };
        Ok((device, epoch, Some((source, lock))))
    }
}

/// What systemd sets by `StateDirectory=`.
pub(super) fn given_state_dir() -> Option<PathBuf> {
    std::env::var_os("STATE_DIRECTORY").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The file or device of an export that has one.
#[must_use]
pub fn path_of(spec: &str) -> Option<&Path> {
    let has_none = spec.starts_with("memory:") || spec.starts_with("null:");
    (!has_none).then(|| Path::new(spec))
}

impl Plan {
    /// Takes the locks of all its exports: their messages can say more before the server gives up what it does not
    /// need. Where something cannot be opened, its export will say so.
    ///
    /// # Errors
    /// Somebody else has one, and who.
    pub fn lock(&self, locks: &Locks) -> anyhow::Result<Vec<Arc<Lock>>> {
        let mut taken = Vec::new();
        for Definition { serve, access, .. } in &self.exports {
            let Some(path) = path_of(serve).filter(|path| kind_of(path).is_ok()) else { continue };
            let mut options = OpenOptions::new();
            options.read(true).write(*access == Access::ReadWrite).custom_flags(nix::libc::O_NONBLOCK);
            if let Ok(file) = options.open(path) {
                taken.push(locks.take(path, &file, *access)?);
            }
        }
        Ok(taken)
    }
}

impl Definition {
    /// Checks what can be checked without opening anything.
    pub fn check(&self) -> anyhow::Result<()> {
        let spec = &self.serve;
        match spec.strip_prefix("memory:").or_else(|| spec.strip_prefix("null:")) {
            Some(size) => typed_size(spec, size).map(|_| ()),
            None => kind_of(Path::new(spec)).map(|_| ()),
        }
    }
}

/// What is at a path, if it can be served.
fn kind_of(path: &Path) -> anyhow::Result<FileType> {
    let shown = path.display();
    let kind = std::fs::metadata(path).with_context(|| format!("cannot open {shown}"))?.file_type();
    ensure!(!kind.is_dir(), "{shown} is a directory; give a regular file or a block device");
    ensure!(kind.is_file() || kind.is_block_device(), "{shown} is neither a regular file nor a block device");
    Ok(kind)
}

fn typed_size(spec: &str, size: &str) -> anyhow::Result<u64> {
    let size = parse_size(size).map_err(|error| anyhow::anyhow!("{spec}: {error}"))?;
    ensure!(size > 0, "{spec}: the size is zero");
    ensure!(
        size.is_multiple_of(SECTOR),
        "{spec}: the size must be a multiple of {SECTOR} bytes; {} is the nearest above",
        size.next_multiple_of(SECTOR)
    );
    ensure!(i64::try_from(size).is_ok(), "{spec}: the size is larger than any device can be");
    Ok(size)
}

fn explain_open(path: &Path, how: How, error: &io::Error) -> anyhow::Error {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if how.access == Access::ReadWrite =>
        {
            anyhow::anyhow!("cannot open {shown} for writing: {error}; --read-only serves it without")
        }
        io::ErrorKind::InvalidInput if how.direct => {
            anyhow::anyhow!("{shown} is on a file system without direct I/O; leave out --direct")
        }
        io::ErrorKind::ResourceBusy => anyhow::anyhow!(
            "{shown} is in use (mounted, or part of another device); serving it for writing would corrupt it"
        ),
        _ => anyhow::anyhow!("cannot open {shown}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_sizes() {
        assert_eq!(typed_size("", "1M").unwrap(), 1 << 20);
        assert_eq!(typed_size("", "512").unwrap(), 512);
        for bad in ["1000", "0", "", "abc", "-5", "99999999999T"] {
            assert!(typed_size("memory:", bad).is_err(), "{bad}");
        }
    }
}
