//! What was typed, opened and checked: every error a user can make is found here, before the
//! first client connects, and told in one sentence.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use common::handshake::server::Encryption;
use common::proto::DEFAULT_PORT;
use common::wire;

use crate::backend::Access;
use crate::backend::block::BlockBackend;
use crate::backend::file::FileBackend;
use crate::backend::memory::MemoryBackend;
use crate::backend::null::NullBackend;
use crate::cli::{Serve, TlsPolicy, parse_size};
use crate::device::{Device, leaf};
use crate::durability::EarlyLimits;
use crate::durability::epoch::Ledger;
use crate::engine::Pool;
use crate::export::{Export, NameTaken, Registry};
use crate::ledger;
use crate::tls::{Files, Upgrader};

/// Sizes typed by a person must be a multiple of this many bytes.
const SECTOR: u64 = 512;
/// How long a lock on a block device may be held by udev, which looks at every new device.
const UDEV_PATIENCE: Duration = Duration::from_secs(2);

/// What the server is to do.
pub struct Config {
    /// TCP addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Unix sockets to listen on.
    pub unix: Vec<PathBuf>,
    /// Where the operator is heard.
    pub admin: Option<PathBuf>,
    /// What to serve, opened and locked.
    pub exports: Registry,
    /// Threads that serve connections.
    pub workers: usize,
    /// Connections at a time.
    pub connections_max: usize,
    /// Bytes of payload of all connections together.
    pub memory_max: usize,
    /// How connections are encrypted, and whether they must be.
    pub tls: Option<(Upgrader, Encryption)>,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long clients may take to fetch their last replies at the end.
    pub shutdown_timeout: Duration,
}

impl Config {
    /// Opens and checks everything.
    pub fn open(cli: &Serve, pool: &Pool) -> anyhow::Result<Config> {
        let opener = Opener::new(cli, pool);
        let limits = early_limits(cli)?;
        let mut exports = Registry::default();
        for spec in &cli.exports {
            let (name, spec) = split_name(spec);
            wire::string(name.as_bytes()).with_context(|| format!("the export name {name:?}"))?;
            let (storage, ledger) = opener.open(spec)?;
            let export = Export::new(name.to_owned(), storage, cli.durability, limits, ledger);
            if let Err(NameTaken) = exports.add(export) {
                match name {
                    "" => bail!("only one export can go without a name; name the others: NAME={spec}"),
                    _ => bail!("two exports are named {name:?}"),
                }
            }
        }
        Ok(Config {
            listen: addresses(cli)?,
            unix: cli.unix.clone(),
            admin: cli.admin.clone(),
            exports,
            workers: match cli.workers {
                Some(workers) => workers.get(),
                None => thread::available_parallelism().map_or(1, usize::from),
            },
            connections_max: cli.max_connections.get(),
            memory_max: usize::try_from(cli.max_memory).unwrap_or(usize::MAX),
            tls: tls(cli)?,
            handshake_timeout: cli.handshake_timeout,
            shutdown_timeout: cli.shutdown_timeout,
        })
    }
}

fn tls(cli: &Serve) -> anyhow::Result<Option<(Upgrader, Encryption)>> {
    let (Some(cert), Some(key)) = (&cli.tls_cert, &cli.tls_key) else { return Ok(None) };
    let files = Files { cert: cert.clone(), key: key.clone(), ca: cli.tls_ca.clone() };
    let policy = match cli.tls {
        TlsPolicy::Required => Encryption::Required,
        TlsPolicy::Optional => Encryption::Optional,
    };
    Ok(Some((Upgrader::open(&files)?, policy)))
}

fn early_limits(cli: &Serve) -> anyhow::Result<EarlyLimits> {
    let bytes = |size| usize::try_from(size).context("a size is larger than memory can be");
    let limits = EarlyLimits {
        dirty_max: bytes(cli.dirty_max)?,
        dirty_age: cli.dirty_age,
        early_max: bytes(cli.early_ack_max)?,
    };
    ensure!(
        limits.early_max <= limits.dirty_max,
        "--early-ack-max is larger than --dirty-max: such a write would never fit"
    );
    Ok(limits)
}

fn addresses(cli: &Serve) -> anyhow::Result<Vec<SocketAddr>> {
    if cli.listen.is_empty() && cli.unix.is_empty() {
        return Ok(vec![SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT))]);
    }
    let mut addresses = Vec::new();
    for text in &cli.listen {
        let found = text.to_socket_addrs().with_context(|| {
            format!("--listen {text}: not an address (write ADDR:PORT, for example 127.0.0.1:10809 or [::1]:10809)")
        })?;
        addresses.extend(found);
    }
    Ok(addresses)
}

/// Splits `NAME=SPEC`. What stands before the `=` is a name only if it holds no slash, so that
/// `./a=b.img` is a file.
fn split_name(text: &str) -> (&str, &str) {
    match text.split_once('=') {
        Some((name, spec)) if !name.contains('/') => (name, spec),
        _ => ("", text),
    }
}

/// Opens what is to be served, as the command line says.
struct Opener<'a> {
    access: Access,
    state_dir: Option<PathBuf>,
    pool: &'a Pool,
}

/// What is served, and where its epoch is kept.
type Opened = (Arc<dyn Device>, Ledger);

impl Opener<'_> {
    fn new<'a>(cli: &Serve, pool: &'a Pool) -> Opener<'a> {
        let access = if cli.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let given = || std::env::var_os("STATE_DIRECTORY").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Opener { access, state_dir: cli.state_dir.clone().or_else(given), pool }
    }

    fn open(&self, spec: &str) -> anyhow::Result<Opened> {
        if let Some(size) = spec.strip_prefix("memory:") {
            let memory = MemoryBackend::new(typed_size(spec, size)?).context(spec.to_owned())?;
            return Ok((leaf(memory), ledger::volatile()));
        }
        if let Some(size) = spec.strip_prefix("null:") {
            return Ok((leaf(NullBackend { size: typed_size(spec, size)? }), ledger::nothing_to_lose()));
        }
        self.open_path(Path::new(spec))
    }

    fn open_path(&self, path: &Path) -> anyhow::Result<Opened> {
        let (shown, access) = (path.display(), self.access);
        let kind = std::fs::metadata(path).with_context(|| format!("cannot open {shown}"))?.file_type();
        ensure!(!kind.is_dir(), "{shown} is a directory; give a regular file or a block device");
        ensure!(
            kind.is_file() || kind.is_block_device(),
            "{shown} is neither a regular file nor a block device"
        );

        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        if kind.is_block_device() && access == Access::ReadWrite {
            // On a block device O_EXCL means: not while it is mounted or otherwise claimed.
            options.custom_flags(nix::libc::O_EXCL);
        }
        let file = options.open(path).map_err(|error| explain_open(path, access, &error))?;
        let patience = if kind.is_block_device() { UDEV_PATIENCE } else { Duration::ZERO };
        lock(&file, access, patience).with_context(|| format!("cannot lock {shown}"))?;
        let ledger = match access {
            Access::ReadWrite => {
                ledger::open(&file, path, self.state_dir.as_deref(), self.pool).context(format!("{shown}"))?
            }
            Access::ReadOnly => ledger::nothing_to_lose(),
        };
        let device = if kind.is_block_device() {
            leaf(BlockBackend::new(file, access, self.pool.clone()).context(format!("{shown}"))?)
        } else {
            leaf(FileBackend::new(file, access, self.pool.clone()).context(format!("{shown}"))?)
        };
        Ok((device, ledger))
    }
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

fn explain_open(path: &Path, access: Access, error: &io::Error) -> anyhow::Error {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if access == Access::ReadWrite =>
        {
            anyhow::anyhow!("cannot open {shown} for writing: {error}; --read-only serves it without")
        }
        io::ErrorKind::ResourceBusy => anyhow::anyhow!(
            "{shown} is in use (mounted, or part of another device); serving it for writing would corrupt it"
        ),
        _ => anyhow::anyhow!("cannot open {shown}: {error}"),
    }
}

/// Takes the advisory lock that keeps a second server off the same storage. It lives as long as
/// the descriptor.
fn lock(file: &File, access: Access, patience: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let locked = match access {
            Access::ReadWrite => file.try_lock(),
            Access::ReadOnly => file.try_lock_shared(),
        };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => bail!("another server is using it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        assert_eq!(split_name("disk.img"), ("", "disk.img"));
        assert_eq!(split_name("a=disk.img"), ("a", "disk.img"));
        assert_eq!(split_name("./a=b.img"), ("", "./a=b.img"));
        assert_eq!(split_name("a=b=c"), ("a", "b=c"));
    }

    #[test]
    fn typed_sizes() {
        assert_eq!(typed_size("", "1M").unwrap(), 1 << 20);
        assert_eq!(typed_size("", "512").unwrap(), 512);
        for bad in ["1000", "0", "", "abc", "-5", "99999999999T"] {
            assert!(typed_size("memory:", bad).is_err(), "{bad}");
        }
    }
}
