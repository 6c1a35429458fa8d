//! Where the [record](crate::durability::epoch) of an export is kept: with a regular file as its
//! extended attribute, else in a state directory, else nowhere, which makes every start of the
//! server look like a loss to clients that reconnect.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::device::Io;
use crate::durability::epoch::{Held, Ledger, Record, Store};
use crate::engine::Pool;

/// The extended attribute.
const ATTRIBUTE: &str = "user.nbd-server.epoch";
/// Longest record there is, generously.
const RECORD_MAX: usize = 256;
/// Longest name of a file in a state directory, in bytes.
const NAME_MAX: usize = 255;

/// The ledger of a regular file or a block device that is opened for writing.
///
/// # Errors
/// There is a place for the record, and it cannot be read or written.
pub fn open(file: &File, path: &Path, state_dir: Option<&Path>, pool: &Pool) -> anyhow::Result<Ledger> {
    if let Some(ledger) = Attribute::open(file, pool).context("cannot keep the epoch with the file")? {
        return Ok(ledger);
    }
    if let Some(dir) = state_dir {
        return StateFile::open(dir, path, pool);
    }
    tracing::info!(
        path = %path.display(),
        "no place for the epoch: to clients that reconnect, a restart of this server looks like a loss \
         (--state-dir gives it one)"
    );
    Ok(forgetful(fresh()))
}

/// The ledger of what dies with the server.
#[must_use]
pub fn volatile() -> Ledger {
    forgetful(fresh())
}

/// The ledger of what has nothing to lose.
#[must_use]
pub fn nothing_to_lose() -> Ledger {
    forgetful(0)
}

fn forgetful(epoch: u64) -> Ledger {
    Ledger { record: Record { epoch, boot: 0, held: Held::Nowhere }, store: Box::new(Forgetful) }
}

fn fresh() -> u64 {
    let mut bytes = [0; 8];
    let drawn = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(drawn, Ok(bytes.len()), "the kernel gives a few random bytes whole");
    u64::from_ne_bytes(bytes)
}

/// Which boot of the host this is.
fn boot() -> anyhow::Result<u128> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).with_context(|| format!("{path} holds no number"))
}

/// Keeps nothing.
struct Forgetful;

impl Store for Forgetful {
    fn keep(&self, _: Record) -> Io<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn fresh(&self) -> u64 {
        fresh()
    }
}

/// Keeps the record as an extended attribute of the file itself, with which it moves.
struct Attribute {
    file: Arc<File>,
    pool: Pool,
}

impl Attribute {
    /// The ledger, unless the file system has no such attributes.
    fn open(file: &File, pool: &Pool) -> anyhow::Result<Option<Ledger>> {
        let mut text = [0; RECORD_MAX];
        let left = match fgetxattr(file, ATTRIBUTE, &mut text) {
            Ok(len) => std::str::from_utf8(&text[..len]).ok().and_then(|text| text.parse().ok()),
            Err(Errno::NODATA | Errno::RANGE) => None,
            // Device nodes have none, nor do some file systems.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let record = Record::after(left, boot()?, fresh());
        if let Err(error) = Attribute::write(file, &record) {
            use io::ErrorKind::{QuotaExceeded, StorageFull, Unsupported};
            // Where an old record stands, it must not go on to say what is no longer true.
            let has_no_room = left.is_none() && matches!(error.kind(), StorageFull | QuotaExceeded);
            return if has_no_room || error.kind() == Unsupported { Ok(None) } else { Err(error.into()) };
        }
        let file = Arc::new(file.try_clone()?);
        Ok(Some(Ledger { record, store: Box::new(Attribute { file, pool: pool.clone() }) }))
    }

    fn write(file: &File, record: &Record) -> io::Result<()> {
        match fsetxattr(file, ATTRIBUTE, record.to_string().as_bytes(), XattrFlags::empty()) {
            Ok(()) => file.sync_all(),
            Err(Errno::PERM | Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Store for Attribute {
    fn keep(&self, record: Record) -> Io<'_, ()> {
        let file = self.file.clone();
        Box::pin(self.pool.run(move || Attribute::write(&file, &record)))
    }

    fn fresh(&self) -> u64 {
        fresh()
    }
}

/// Keeps the record in a file of its own, replaced as a whole.
struct StateFile {
    path: PathBuf,
    pool: Pool,
}

impl StateFile {
    fn open(dir: &Path, path: &Path, pool: &Pool) -> anyhow::Result<Ledger> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let kept = dir.join(StateFile::name(path)?);
        let left = match fs::read_to_string(&kept) {
            Ok(text) => text.parse().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", kept.display())),
        };
        let record = Record::after(left, boot()?, fresh());
        StateFile::write(&kept, &record).with_context(|| format!("cannot write {}", kept.display()))?;
        Ok(Ledger { record, store: Box::new(StateFile { path: kept, pool: pool.clone() }) })
    }

    /// What is served, as the name of a file: its path as typed, with another sign for the slash.
    fn name(path: &Path) -> anyhow::Result<String> {
        let path = std::path::absolute(path)?;
        let path = path.to_str().context("--state-dir needs paths that are UTF-8")?;
        let name = path.replace('!', "!!").replace('/', "!");
        ensure!(name.len() <= NAME_MAX, "{path} is too long a path for --state-dir");
        Ok(name)
    }

    fn write(path: &Path, record: &Record) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{record}")?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().expect("it is in a directory"))?.sync_all()
    }
}

impl Store for StateFile {
    fn keep(&self, record: Record) -> Io<'_, ()> {
        let path = self.path.clone();
        Box::pin(self.pool.run(move || StateFile::write(&path, &record)))
    }

    fn fresh(&self) -> u64 {
        fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn a_state_directory_keeps_what_was_last_said() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::start(1).unwrap();
        let open = || StateFile::open(dir.path(), Path::new("/dev/vg/disk"), &pool).unwrap();
        let first = open();
        assert_eq!(first.record.held, Held::Nowhere);
        assert_eq!(open().record, first.record, "nothing was ever unstable");
        block_on(first.store.keep(Record { held: Held::Server, ..first.record })).unwrap();
        let second = open();
        assert_ne!(second.record.epoch, first.record.epoch);
        assert_eq!(second.record.held, Held::Kernel);
    }

    #[test]
    fn names_in_a_state_directory_differ_where_paths_do() {
        let name = |path: &str| StateFile::name(Path::new(path)).unwrap();
        assert_eq!(name("/dev/vg/disk"), "!dev!vg!disk");
        assert_ne!(name("/a!b"), name("/a/b"));
        assert!(StateFile::name(Path::new(&format!("/{}", "x".repeat(300)))).is_err());
    }
}
