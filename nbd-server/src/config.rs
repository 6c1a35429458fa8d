//! What was typed or written, and what it means: every error a user can make is found here, before
//! the first client connects, and told in one sentence.
//!
//! A [`Plan`] is what the command line or a [file] says, checked as far as that goes without opening
//! anything; [`Config::open`] opens it.

pub mod file;
mod lock;
mod open;
mod reach;
mod record;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::handshake::server::Encryption;
use common::proto::DEFAULT_PORT;
use common::wire;

use crate::backend::Access;
use crate::cli::{Serve, TlsPolicy};
use crate::confine::{Sandbox, UnixAccess, User};
use crate::durability::{EarlyLimits, Mode};
use crate::engine::{Engine, Pool};
use crate::export::{Admission, Export, Registry};
use crate::tls::{Files, Upgrader};
use open::Opener;

pub use lock::{Lock, Locks};
pub use open::path_of;
pub use record::Recording;

/// Where a server listens that was told nothing else.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT);

/// One export, as it is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// What clients ask for; empty for the default export.
    pub name: String,
    /// A path, `memory:SIZE` or `null:SIZE`.
    pub serve: String,
    /// Bytes of it that are served, where that is not all.
    pub size: Option<u64>,
    /// Whether writes are refused.
    pub access: Access,
    /// Whether it is reached around the page cache.
    pub direct: bool,
    /// What may be acknowledged before it is safe.
    pub mode: Mode,
    /// What `early-ack` may hold.
    pub limits: EarlyLimits,
    /// What people are told about it.
    pub text: Option<String>,
    /// Who may use it.
    pub admission: Admission,
}

impl Definition {
    /// Whether an export of the other definition becomes one of this by being told so.
    #[must_use]
    pub fn differs_in_manner_only(&self, other: &Definition) -> bool {
        let storage =
            |it: &Definition| (it.name.clone(), it.serve.clone(), it.size, it.access, it.direct, it.limits);
        storage(self) == storage(other)
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }
}

/// What is the same for all exports.
#[derive(Debug, Clone, PartialEq)]
pub struct Globals {
    /// TCP addresses to listen on, as they were written: [`resolve`] asks what they mean. Where there is
    /// nothing to listen on and nothing inherited either, it is [`DEFAULT_ADDRESS`].
    pub listen: Vec<String>,
    /// Unix sockets to listen on.
    pub unix: Vec<PathBuf>,
    /// Who may connect to those; what the umask says, where nothing else is said.
    pub unix_access: UnixAccess,
    /// vsock ports to listen on.
    pub vsock: Vec<u32>,
    /// Where the operator is heard.
    pub admin: Option<PathBuf>,
    /// Where the one export is recorded.
    pub record: Option<PathBuf>,
    /// Where marks are taken into the recording.
    pub marks: Option<PathBuf>,
    /// Where epochs are kept that cannot be kept with what is served.
    pub state_dir: Option<PathBuf>,
    /// Whom to become once the sockets listen.
    pub user: Option<User>,
    /// Whether to confine the process.
    pub sandbox: Sandbox,
    /// Directories from which a later reload may serve, beside those of what is served now.
    pub directories: Vec<PathBuf>,
    /// How operations that may block are run.
    pub engine: Engine,
    /// How long a worker looks for the next request of its only client before it sleeps.
    pub busy_poll: Duration,
    /// Threads that serve connections.
    pub workers: usize,
    /// Connections at a time.
    pub connections_max: usize,
    /// Bytes of payload of all connections together.
    pub memory_max: usize,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long clients may take to fetch their last replies at the end.
    pub shutdown_timeout: Duration,
}

/// What the server is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What is the same for all exports.
    pub globals: Globals,
    /// How connections are encrypted, and whether they must be.
    pub tls: Option<(Files, Encryption)>,
    /// What to serve, each under a name of its own.
    pub exports: Vec<Definition>,
}

impl Plan {
    /// What the command line says.
    pub fn typed(cli: &Serve) -> anyhow::Result<Plan> {
        let mut plan = Plan { globals: globals(cli)?, tls: tls(cli), exports: Vec::new() };
        let mut served = Served::new();
        for spec in &cli.exports {
            let (name, spec) = split_name(spec);
            plan.add(
                Definition { name: name.to_owned(), serve: spec.to_owned(), ..definition(cli)? },
                &mut served,
            )?;
        }
        ensure!(
            cli.record.is_none() || plan.exports.len() == 1,
            "a recording is of one export; start a server for each"
        );
        Ok(plan)
    }

    fn add(&mut self, definition: Definition, served: &mut Served) -> anyhow::Result<()> {
        let Definition { name, serve, .. } = &definition;
        wire::string(name.as_bytes()).with_context(|| format!("the export name {name:?}"))?;
        if self.exports.iter().any(|other| other.name == *name) {
            match &name[..] {
                "" => bail!("only one export can go without a name; name the others: NAME={serve}"),
                _ => bail!("two exports are named {name:?}"),
            }
        }
        let file = path_of(serve).map(|path| path.canonicalize().unwrap_or_else(|_| path.into()));
        let same =
            file.iter().flat_map(|file| served.get(file)).flatten().map(|number| &self.exports[*number]);
        let both_write = |other: &&Definition| !other.is_read_only() && !definition.is_read_only();
        if let Some(other) = same.into_iter().find(both_write) {
            bail!(
                "{serve} is served as {:?} already, and cannot be as {name:?} at the same time, unless one of them is \
                 read-only",
                other.name
            );
        }
        if let Some(file) = file {
            served.entry(file).or_default().push(self.exports.len());
        }
        self.exports.push(definition);
        Ok(())
    }

    /// Checks what can be checked without opening what is to be served.
    pub fn check(&self) -> anyhow::Result<()> {
        self.upgrader()?;
        for address in &self.globals.listen {
            resolve(address).with_context(|| format!("listen {address}"))?;
        }
        self.exports.iter().try_for_each(Definition::check)
    }

    /// Reads what TLS needs.
    pub fn upgrader(&self) -> anyhow::Result<Option<(Upgrader, Encryption)>> {
        let open = |(files, policy): &(Files, Encryption)| Ok((Upgrader::open(files)?, *policy));
        self.tls.as_ref().map(open).transpose()
    }

    /// Opens and locks one of its exports.
    pub fn open(&self, definition: &Definition, pool: &Pool, locks: &Locks) -> anyhow::Result<Arc<Export>> {
        Opener::new(self.globals.state_dir.clone(), pool, locks).export(definition)
    }
}

/// A plan, opened and locked.
pub struct Config {
    /// What is to be done.
    pub plan: Plan,
    /// What to serve.
    pub exports: Registry,
    /// How connections are encrypted, and whether they must be.
    pub tls: Option<(Upgrader, Encryption)>,
}

impl Config {
    /// Opens everything.
    pub fn open(plan: Plan, pool: &Pool, locks: &Locks) -> anyhow::Result<Config> {
        let exports = Registry::default();
        for definition in &plan.exports {
            exports.add(plan.open(definition, pool, locks)?);
        }
        Ok(Config { tls: plan.upgrader()?, plan, exports })
    }
}

/// Which exports each file is served as, by their numbers in a plan.
type Served = HashMap<PathBuf, Vec<usize>>;

fn globals(cli: &Serve) -> anyhow::Result<Globals> {
    Ok(Globals {
        listen: cli.listen.clone(),
        unix: cli.unix.clone(),
        unix_access: UnixAccess::find(cli.unix_mode, cli.unix_group.as_deref())?,
        vsock: cli.vsock.clone(),
        admin: cli.admin.clone(),
        record: cli.record.clone(),
        marks: cli.marks.clone(),
        state_dir: cli.state_dir.clone(),
        user: cli.user.as_deref().map(User::find).transpose()?,
        sandbox: cli.sandbox,
        directories: Vec::new(),
        engine: cli.engine,
        busy_poll: Duration::from_micros(cli.busy_poll),
        workers: match cli.workers {
            Some(workers) => workers.get(),
            None => thread::available_parallelism().map_or(1, usize::from),
        },
        connections_max: cli.max_connections.get(),
        memory_max: usize::try_from(cli.max_memory).unwrap_or(usize::MAX),
        handshake_timeout: cli.handshake_timeout,
        shutdown_timeout: cli.shutdown_timeout,
    })
}

/// An export without name and storage.
fn definition(cli: &Serve) -> anyhow::Result<Definition> {
    Ok(Definition {
        name: String::new(),
        serve: String::new(),
        size: None,
        access: if cli.read_only { Access::ReadOnly } else { Access::ReadWrite },
        direct: cli.direct,
        mode: cli.durability,
        limits: early_limits(cli)?,
        text: None,
        admission: Admission::default(),
    })
}

fn tls(cli: &Serve) -> Option<(Files, Encryption)> {
    let (cert, key) = (cli.tls_cert.clone()?, cli.tls_key.clone()?);
    let policy = match cli.tls {
        TlsPolicy::Required => Encryption::Required,
        TlsPolicy::Optional => Encryption::Optional,
    };
    Some((Files { cert, key, ca: cli.tls_ca.clone(), crl: cli.tls_crl.clone() }, policy))
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

/// What `ADDR:PORT` means; a name may mean several addresses, and none means all of the machine's, of both families.
///
/// # Errors
/// Where it means none.
pub fn resolve(text: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let split = || {
        let (host, port) = text.rsplit_once(':')?;
        Some((host, port.parse::<u16>().ok()?))
    };
    let (host, port) = split().context(
        "not an address: write ADDR:PORT, for example 127.0.0.1:10809 or [::1]:10809, or :10809 for all addresses",
    )?;
    if let "" | "*" = host {
        return Ok(vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]);
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let found = (bare.unwrap_or(host), port).to_socket_addrs();
    Ok(found.with_context(|| format!("nothing is known of {host:?}"))?.collect())
}

/// Splits `NAME=SPEC`. What stands before the `=` is a name only if it holds no slash, so that
/// `./a=b.img` is a file.
fn split_name(text: &str) -> (&str, &str) {
    match text.split_once('=') {
        Some((name, spec)) if !name.contains('/') => (name, spec),
        _ => ("", text),
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
}
