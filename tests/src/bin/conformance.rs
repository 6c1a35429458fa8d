//! Probes NBD servers and prints the table. `cargo xtask conformance` installs what this needs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::uri::{Tls, Transport, Uri};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ALL_VERSIONS;
use tempfile::TempDir;
use tests::audit::subject::{Place, Subject};
use tests::endpoint::{Endpoint, Trust};
use tests::pki::Authority;
use tests::probes::{Table, Target};
use tests::server::Server;

/// Have conversations with NBD servers and tell where they leave the protocol.
///
/// Without an address: ours over Unix, TCP and TLS, and nbdkit, qemu-nbd and nbd-server over Unix.
#[derive(Parser)]
struct Args {
    /// A server's address; the probes WRITE to that export, which needs 1 MiB, better 32
    uri: Vec<Uri>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Bytes that are served, enough for the longest request.
const SIZE: u64 = 64 << 20;
/// The servers that ours are compared with.
const PEERS: &[&str] = &["nbdkit", "qemu-nbd", "nbd-server+"];

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    // A probe that panics has found something, and the table says what.
    std::panic::set_hook(Box::new(|_| {}));
    let (table, ours) = if args.uri.is_empty() { compare()? } else { (probe(&args.uri)?, vec![]) };
    if args.json {
        println!("{:#}", table.to_json());
    } else {
        print!("{table}");
    }
    // What others do is a finding; what ours, or the one that was asked for, does wrong is an error.
    let named = args.uri.iter().map(ToString::to_string);
    let clean = named.chain(ours).all(|name| table.is_clean(&name));
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Probes the servers at some addresses.
fn probe(uris: &[Uri]) -> Result<Table> {
    let targets: Result<Vec<_>> = uris.iter().map(|uri| Ok((uri.to_string(), target(uri)?))).collect();
    Ok(Table::of(&targets?))
}

fn target(uri: &Uri) -> Result<Target> {
    let (plain, name) = match &uri.transport {
        Transport::Unix { path } => (Endpoint::Unix(path.clone()), "localhost"),
        Transport::Tcp { host, port } => {
            let found = std::net::ToSocketAddrs::to_socket_addrs(&(&host[..], *port))
                .with_context(|| host.clone())?
                .next();
            (Endpoint::Tcp(found.with_context(|| format!("{host} has no address"))?), &host[..])
        }
        Transport::Vsock { .. } => bail!("{uri}: probes run over TCP and Unix sockets"),
    };
    let endpoint = match uri.tls {
        Tls::Off => plain,
        Tls::Required => {
            let dir = uri.certificates.as_deref().context("TLS needs ?tls-certificates=DIR")?;
            Endpoint::Tls(Box::new(plain), trust(dir, name)?)
        }
    };
    Ok(Target { endpoint, export: uri.export.clone() })
}

/// Certificates as libnbd and QEMU keep them; a server that wants none is shown none.
fn trust(dir: &Path, name: &str) -> Result<Trust> {
    let (cert, key) = (dir.join("client-cert.pem"), dir.join("client-key.pem"));
    let own = cert.exists().then_some((&*cert, &*key));
    let read = || Trust::read(&dir.join("ca-cert.pem"), own, name, ALL_VERSIONS);
    read().with_context(|| format!("the certificates in {}", dir.display()))
}

/// Probes ours, and those of others that are installed; also names ours.
fn compare() -> Result<(Table, Vec<String>)> {
    let authority = Authority::new();
    let plain = Server::builder().export(format!("memory:{SIZE}")).unix().tcp().start();
    let encrypted = Server::builder().export(format!("memory:{SIZE}")).tls(&authority).tcp().start();
    let over_tls = encrypted.endpoint().encrypted(&authority);
    let endpoints = plain.endpoints().iter().cloned().chain([over_tls]);
    let ours: Vec<String> = ["ours, Unix", "ours, TCP", "ours, TLS"].map(str::to_owned).into();
    let mut servers: Vec<_> = ours
        .iter()
        .cloned()
        .zip(endpoints.map(|endpoint| Target { endpoint, export: String::new() }))
        .collect();
    let peers = PEERS.iter().map(|name| Peer::start(name)).collect::<Result<Vec<_>>>()?;
    servers.extend(peers.iter().flatten().map(|peer| (peer.name.clone(), peer.target.clone())));
    Ok((Table::of(&servers), ours))
}

/// A server of others that serves a file, ended when dropped.
struct Peer {
    name: String,
    target: Target,
    child: Child,
    pid_file: Option<PathBuf>,
    _dir: TempDir,
}

impl Peer {
    fn start(name: &str) -> Result<Option<Peer>> {
        let subject = Subject::named(name).context("a subject of the audit")?;
        let Some(program) = subject.program() else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let (disk, socket) = (dir.path().join("disk.img"), dir.path().join("nbd.sock"));
        File::create(&disk)?.set_len(SIZE)?;
        let words = subject.words(&Place { dir: dir.path(), disk: &disk, socket: &socket });
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| name.to_owned())?;
        let endpoint = Endpoint::Unix(socket.clone());
        tests::wait_until(name, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        let target = Target { endpoint, export: subject.export.to_owned() };
        let pid_file = subject.pid_file(dir.path());
        Ok(Some(Peer { name: name.trim_end_matches('+').to_owned(), target, child, pid_file, _dir: dir }))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let daemon = self.pid_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        if let Some(pid) = daemon.and_then(|text| text.trim().parse().ok()) {
            let _may_be_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        // It may have ended already; then there is only the zombie to collect.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
