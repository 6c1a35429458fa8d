//! Our server on the host, for guests that reach it through [`crate::Builder::host_port`]. It outlives any guest and
//! dies with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::patience::Deadline;
use crate::scene::Scene;
use crate::steps::Counters;
use crate::{guest, wait};

/// A running server.
pub struct HostServer {
    child: Child,
    log: PathBuf,
    port: u16,
    /// Where it hears its operator: socket paths are short, so not with the logs.
    operator: TempDir,
}

const LIMIT: Duration = Duration::from_secs(60);
/// How often its log is looked at for what it is to say.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl HostServer {
    /// Starts a server that listens on a port of the loopback, a free one if `port` is 0. Its log is called `name`.
    pub fn start(scene: &Scene, name: &str, port: u16, arguments: &[&str]) -> Result<HostServer> {
        let log = scene.logs().join(name);
        // The kernel kills it when the test's thread ends, even by SIGKILL.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(guest::host_program("nbd-server")?);
        let operator = tempfile::tempdir()?;
        command.arg("--admin").arg(operator.path().join("admin"));
        command.args(["--listen", &format!("127.0.0.1:{port}")]).args(arguments);
        command.stdin(Stdio::null());
        command.stdout(File::create(log.with_extension("out"))?);
        command.stderr(File::create(log.with_extension("log"))?);
        let child = command.spawn().context("cannot start nbd-server")?;
        let mut server = HostServer { child, log, port, operator };
        server.port = server.poll("listen", HostServer::said_port)?;
        Ok(server)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        text(&self.log.with_extension("log"))
    }

    /// What it has done until now.
    pub fn counters(&mut self) -> Result<Counters> {
        let before = self.log().lines().filter_map(Counters::told).count();
        self.signal(Signal::USR1)?;
        self.poll("report its counters", |server| server.log().lines().filter_map(Counters::told).nth(before))
    }

    /// Orders something by `nbd-server ctl`, which must be done.
    pub fn order(&self, words: &[&str]) -> Result<String> {
        let mut ctl = Command::new(guest::host_program("nbd-server")?);
        ctl.arg("ctl").arg("--admin").arg(self.operator.path().join("admin")).args(words);
        let out = ctl.output().context("cannot run nbd-server ctl")?;
        ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Asks it to end, which it must do well.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Ends it at once.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).map_err(Into::into)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill_process(Pid::from_raw(pid).context("a child has a process id")?, signal)?;
        Ok(())
    }

    fn said_port(&mut self) -> Option<u16> {
        let said = text(&self.log.with_extension("out"));
        let uri = said.lines().next()?;
        uri.trim_end_matches('/').rsplit(':').next()?.parse().ok()
    }

    fn poll<T>(&mut self, what: &str, mut look: impl FnMut(&mut HostServer) -> Option<T>) -> Result<T> {
        let (end, deadline) = (wait::end_of(&self.child)?, Deadline::after(LIMIT));
        while !deadline.has_passed() {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            // What it writes to its log tells nobody; its end does.
            if wait::readable_within([&end], LOOK_EVERY)? == [true] {
                let status = self.child.wait()?;
                bail!("the server ended with {status} and did not {what}:\n{}", self.log());
            }
        }
        bail!("the server did not {what} within {LIMIT:?}")
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        // It may have ended already; then there is only the zombie to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
