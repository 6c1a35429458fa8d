//! Kills a program before one of its system calls: `kill-at COUNT PROGRAM WORD…` starts it, `kill-at COUNT --pid PID` takes
//! one that runs. Its threads' calls count as they come; those of processes that it starts do not. Ends as the program
//! did, with 137 if it was killed, and says how many calls there were.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, exit};

use anyhow::{Context, Result, bail};
use nix::libc::PTRACE_EVENT_EXEC;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [count, rest @ ..] = &words[..] else {
        bail!("say: kill-at COUNT PROGRAM WORD…, or COUNT --pid PID")
    };
    let count: u64 = count.parse().context("COUNT is a number")?;
    let watched = match rest {
        [flag, pid] if flag == "--pid" => Watched::running(pid.parse()?)?,
        [] => bail!("no program"),
        program => Watched::started(program)?,
    };
    let (calls, code) = watched.kill_before(count)?;
    eprintln!("calls {calls}");
    exit(code)
}

/// A program and its threads.
struct Watched {
    leader: Pid,
    /// Threads inside of a call.
    inside: BTreeSet<Pid>,
    /// Whether the program itself runs, not what starts it.
    begun: bool,
}

fn options() -> Options {
    Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC
}

impl Watched {
    /// A shell waits for us to be there before it becomes the program.
    fn started(program: &[String]) -> Result<Watched> {
        let shell = ["-c", "kill -STOP $$; exec \"$@\"", "sh"];
        let child = Command::new("sh").args(shell).args(program).spawn()?;
        let leader = Pid::from_raw(i32::try_from(child.id())?);
        waitpid(leader, Some(WaitPidFlag::WUNTRACED))?;
        ptrace::seize(leader, options())?;
        kill(leader, Signal::SIGCONT)?;
        Ok(Watched { leader, inside: BTreeSet::new(), begun: false })
    }

    fn running(pid: i32) -> Result<Watched> {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = Pid::from_raw(thread?.file_name().to_string_lossy().parse()?);
            ptrace::seize(thread, options())?;
            ptrace::interrupt(thread)?;
        }
        println!("watching");
        Ok(Watched { leader: Pid::from_raw(pid), inside: BTreeSet::new(), begun: true })
    }

    /// How many calls there were, and the program's end.
    fn kill_before(mut self, count: u64) -> Result<(u64, i32)> {
        let mut calls = 0;
        loop {
            let (pid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Exited(pid, code) if pid == self.leader => return Ok((calls, code)),
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => {
                    return Ok((calls, 128 + signal as i32));
                }
                WaitStatus::PtraceSyscall(pid) => {
                    if !self.inside.remove(&pid) {
                        self.inside.insert(pid);
                        calls += u64::from(self.begun);
                        if calls == count && self.begun {
                            kill(self.leader, Signal::SIGKILL)?;
                        }
                    }
                    (pid, None)
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    if event == PTRACE_EVENT_EXEC {
                        // The first is what waits for us, and this its end.
                        self.begun = true;
                        self.inside.clear();
                    }
                    (pid, None)
                }
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                _ => continue,
            };
            // It may have been killed meanwhile; then there is nothing to go on with.
            let _ = ptrace::syscall(pid, signal);
        }
    }
}
