//! The server under measurement: the release build, on a Unix socket, watched from outside.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::run::{cargo, visibly};

/// Kernels count processor time in hundredths of a second, whatever they tick at.
const TICK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) processor: Duration,
    pub(crate) memory_peak_bytes: u64,
}

impl Usage {
    /// What a process has used so far, with its children that have ended: some servers fork one per client.
    pub(crate) fn of(pid: u32) -> Result<Usage> {
        let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (stat, status) = (of("stat")?, of("status")?);
        let after_name = stat.rsplit_once(')').context("a process has a name in brackets")?.1;
        // Fields 14 to 17 of the whole: user and kernel time, its own and theirs.
        let times = after_name.split_whitespace().skip(11).take(4).map(str::parse::<u32>);
        let ticks: u32 = times.sum::<Result<u32, _>>()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
        Ok(Usage { processor: TICK * ticks, memory_peak_bytes: kib << 10 })
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

/// Builds it under the user's eyes; gives its file.
pub(crate) fn build() -> Result<PathBuf> {
    let mut command = cargo();
    visibly(command.args(["build", "--release", "--package=nbd-server", "--bin=nbd-server"]))?;
    Ok(vm_tests::paths::target().join("release/nbd-server"))
}

impl Server {
    /// Starts it on a socket in `dir` and waits until it serves. It dies with us.
    pub(crate) fn start(binary: &Path, dir: &Path, arguments: &[&str]) -> Result<Server> {
        let socket = dir.join("nbd.sock");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary).arg("--unix").arg(&socket).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Server { child: command.spawn().context("cannot start nbd-server")?, socket };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&server.socket).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("nbd-server ended at once ({status})");
            }
            ensure!(Instant::now() < deadline, "nbd-server does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Where a client finds it.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Asks it to end, which makes everything durable.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "nbd-server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
