//! The machine a story happens on: a guest, or this one. The stories are written once, over what both can do, so
//! that the one told about this machine can be tried in a guest.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use vm_tests::{Finished, Signal, Vm};

/// Runs shell commands, and one server in the background.
pub(crate) trait Machine {
    /// Who is at the prompt.
    fn prompt(&self) -> &str;
    /// Runs a command that may fail; both of its outputs count.
    fn try_run(&mut self, command: &str) -> Result<Finished>;
    /// Starts the server, and gives the line in which it says where it serves.
    fn serve(&mut self, command: &str) -> Result<String>;
    /// Ends the server and waits until it is gone.
    fn stop(&mut self, signal: Signal) -> Result<()>;
}

const URI: &str = "nbd+unix:";

/// A guest.
pub(crate) struct Guest {
    pub(crate) vm: Vm,
    servers: u32,
}

impl Guest {
    pub(crate) fn new(vm: Vm) -> Guest {
        Guest { vm, servers: 0 }
    }

    /// What the harness calls the latest server. Each has a name of its own, or what an earlier one printed would
    /// be taken for a word of this one.
    pub(crate) fn server(&self) -> String {
        format!("nbd-server-{}", self.servers)
    }
}

impl Machine for Guest {
    fn prompt(&self) -> &'static str {
        "guest"
    }

    fn try_run(&mut self, command: &str) -> Result<Finished> {
        self.vm.try_run(command)
    }

    fn serve(&mut self, command: &str) -> Result<String> {
        self.servers += 1;
        self.vm.spawn(&self.server(), &format!("exec {command}"))?;
        // Its log, which names the address too, comes over the same line.
        let line = self.vm.wait_for(&self.server(), URI)?;
        Ok(line.split_once(URI).map_or(String::new(), |(_, rest)| format!("{URI}{rest}")))
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        self.vm.kill(&self.server(), signal)?;
        self.vm.wait_exit(&self.server()).map(drop)
    }
}

/// This machine.
pub(crate) struct Local {
    path: OsString,
    directory: PathBuf,
    server: Option<Child>,
}

impl Local {
    /// This machine, with the programs in `programs` at hand; the server's process id and log go to `directory`.
    pub(crate) fn new(programs: &Path, directory: &Path) -> Result<Local> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let all = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path)).chain(system);
        Ok(Local { path: std::env::join_paths(all)?, directory: directory.to_owned(), server: None })
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("PATH", &self.path).stdin(Stdio::null());
        command
    }
}

impl Machine for Local {
    fn prompt(&self) -> &'static str {
        ""
    }

    fn try_run(&mut self, command: &str) -> Result<Finished> {
        let out = self.shell(&format!("exec 2>&1\n{command}")).output().context("cannot run a shell")?;
        let output = String::from_utf8_lossy(&out.stdout).trim_end().to_owned();
        let code = out.status.code().with_context(|| format!("`{command}` was killed ({})", out.status))?;
        Ok(Finished { code, output })
    }

    fn serve(&mut self, command: &str) -> Result<String> {
        let script = format!("echo $$ >server.pid; exec 2>server.log; exec {command}");
        // Ctrl-C must not end it before the file system on it is unmounted.
        let mut shell = self.shell(&script);
        let mut child = shell.current_dir(&self.directory).stdout(Stdio::piped()).process_group(0).spawn()?;
        let stdout = child.stdout.take().context("the server's output is a pipe")?;
        self.server = Some(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.is_empty() {
            let log = std::fs::read_to_string(self.directory.join("server.log")).unwrap_or_default();
            bail!("`{command}` does not serve: {}", log.trim());
        }
        Ok(line.trim_end().to_owned())
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        let mut child = self.server.take().context("no server runs")?;
        let sent = self.shell(&format!("kill -{signal} {}", child.id())).status()?;
        ensure!(sent.success(), "cannot send {signal} to the server");
        child.wait().map(drop).context("waiting for the server")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_runs_commands_and_a_server() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mut local = Local::new(Path::new("/nowhere"), place.path()).expect("a machine");
        let finished = local.try_run("echo one; echo two >&2; exit 3").expect("a shell");
        assert_eq!((finished.code, finished.output.as_str()), (3, "one\ntwo"));
        let said = local.serve("sh -c 'echo here; exec sleep 1000'").expect("a server");
        assert_eq!(said, "here");
        local.stop(Signal::Kill).expect("it ends");
        let failure = local.serve("sh -c 'echo why >&2'").expect_err("it says nothing");
        assert!(failure.to_string().ends_with("does not serve: why"), "{failure}");
    }
}
