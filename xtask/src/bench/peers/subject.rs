//! The servers that are compared, each as its users would run it for speed.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::super::server::Usage;

/// Ours first; the others are its peers.
pub(super) const SUBJECTS: [&str; 4] = ["ours", "nbdkit", "qemu-nbd", "nbd-server"];
/// What the kernel costs: see [`super::bare`].
pub(super) const LIMIT: &str = "bare";
/// All that is measured.
pub(super) const ALL: [&str; 5] = ["ours", "nbdkit", "qemu-nbd", "nbd-server", LIMIT];

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server may take to notice that its client has gone.
const REST: Duration = Duration::from_millis(20);

/// How clients come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Transport {
    Unix,
    Tcp,
}

/// A running server, ended when dropped.
pub(super) struct Subject {
    child: Child,
    /// Of a server that goes into the background.
    daemon: Option<u32>,
    address: Address,
    export: &'static str,
}

enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

impl Address {
    fn answers(&self) -> bool {
        match self {
            Address::Unix(path) => UnixStream::connect(path).is_ok(),
            Address::Tcp(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        }
    }
}

impl Subject {
    /// Starts the server of that name on an image and waits until it serves.
    pub(super) fn start(
        name: &str,
        ours: &Path,
        transport: Transport,
        image: &Path,
        dir: &Path,
    ) -> Result<Subject> {
        let address = match transport {
            Transport::Unix => {
                let path = dir.join("peer.sock");
                let _left_by_the_one_before = fs::remove_file(&path);
                Address::Unix(path)
            }
            // Free now, and nobody else here takes ports.
            Transport::Tcp => Address::Tcp(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()),
        };
        let pid_file = (name == "nbd-server").then(|| dir.join("peer.pid"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        words(&mut command, name, ours, &address, image, dir)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let export = if name == "nbd-server" { "disk" } else { "" };
        let mut subject = Subject { child, daemon: None, address, export };
        let deadline = Instant::now() + PATIENCE;
        while !subject.address.answers() {
            if pid_file.is_none()
                && let Some(status) = subject.child.try_wait()?
            {
                bail!("{name} ended at once ({status})");
            }
            ensure!(Instant::now() < deadline, "{name} does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(file) = pid_file {
            subject.daemon = Some(fs::read_to_string(file)?.trim().parse().context("a process id")?);
        }
        Ok(subject)
    }

    /// Where a client finds it.
    pub(super) fn uri(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!("nbd+unix:///{}?socket={}", self.export, path.display()),
            Address::Tcp(port) => format!("nbd://127.0.0.1:{port}/{}", self.export),
        }
    }

    /// What it has used so far, once its clients have gone.
    pub(super) fn usage(&self) -> Result<Usage> {
        thread::sleep(REST);
        Usage::of(self.daemon.unwrap_or_else(|| self.child.id()))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let daemon = self.daemon.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(daemon) = daemon {
            let _may_be_gone = kill_process(daemon, Signal::KILL);
        }
        let _may_be_gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// The command line of a server.
fn words(
    command: &mut Command,
    name: &str,
    ours: &Path,
    address: &Address,
    image: &Path,
    dir: &Path,
) -> Result<()> {
    match name {
        "ours" => {
            command.arg(ours);
            match address {
                Address::Unix(path) => command.arg("--unix").arg(path),
                Address::Tcp(port) => command.args(["--listen", &format!("127.0.0.1:{port}")]),
            };
        }
        LIMIT => {
            command.arg(std::env::current_exe()?).args(["bench", "bare"]);
            match address {
                Address::Unix(path) => command.arg("--unix").arg(path),
                Address::Tcp(port) => command.args(["--port", &port.to_string()]),
            };
        }
        "nbdkit" => {
            command.args(["nbdkit", "--foreground"]);
            match address {
                Address::Unix(path) => command.arg("--unix").arg(path),
                Address::Tcp(port) => command.args(["--ipaddr", "127.0.0.1", "--port", &port.to_string()]),
            };
            command.arg("file");
        }
        "qemu-nbd" => {
            let all = ["qemu-nbd", "--persistent", "--shared=0", "--format=raw"];
            command.args(all).args(["--cache=writeback", "--aio=io_uring"]);
            match address {
                Address::Unix(path) => command.arg("--socket").arg(path),
                Address::Tcp(port) => command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]),
            };
        }
        _ => {
            let listen = match address {
                Address::Unix(path) => format!("unixsock = {}", path.display()),
                Address::Tcp(port) => format!("listenaddr = 127.0.0.1\nport = {port}"),
            };
            let served = format!("[disk]\nexportname = {}\nflush = true\nfua = true\n", image.display());
            let config = dir.join("peer.conf");
            fs::write(&config, format!("[generic]\n{listen}\n{served}"))?;
            command.arg("nbd-server").arg("-C").arg(config).arg("-p").arg(dir.join("peer.pid"));
            return Ok(());
        }
    }
    command.arg(image);
    Ok(())
}
