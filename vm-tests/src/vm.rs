//! A running guest. Commands are run one by one and checked; daemons are spawned, watched and killed by name; the
//! power can be cut, which leaves only what reached the disks and the logs.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use crate::channel::Finished;
use crate::channel::{Channel, Lost, base64};
use crate::patience::Deadline;
use crate::qemu::Qemu;
use crate::remains::Remains;

/// Emulation is slow, and a limit is there to end a hang, not to measure; see [`crate::patience`].
const RUN_LIMIT: Duration = Duration::from_secs(120);
const RESCUE_LIMIT: Duration = Duration::from_secs(10);
/// What a boot takes on an emulated processor of 2020; where it takes longer, everything may.
const BOOT_USUAL: Duration = Duration::from_secs(5);

/// A running guest. It stays in the thread that booted it, whose end it does not outlive.
pub struct Vm {
    qemu: Qemu,
    run: Channel,
    rescue: Channel,
    remains: Remains,
    session: File,
    console_read: usize,
    boot_time: Duration,
    stuck: bool,
    _stays: PhantomData<Rc<()>>,
}

/// A signal for [`Vm::kill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Please end.
    Term,
    /// End now.
    Kill,
    /// As from a terminal.
    Int,
    /// Reread, or the terminal went.
    Hup,
    /// Freeze.
    Stop,
    /// Thaw.
    Cont,
    /// Whatever the program says it means; our server reports its counters.
    Usr1,
}

/// A guest command that exited with something other than 0.
#[derive(Debug)]
pub struct CommandFailed {
    /// The command.
    pub command: String,
    /// How it ended.
    pub finished: Finished,
}

impl Vm {
    pub(crate) fn new(
        qemu: Qemu,
        run: Channel,
        rescue: Channel,
        remains: Remains,
        session: File,
        boot_time: Duration,
    ) -> Vm {
        Vm {
            qemu,
            run,
            rescue,
            remains,
            session,
            boot_time,
            console_read: 0,
            stuck: false,
            _stays: PhantomData,
        }
    }

    /// Runs a shell command and gives what it printed. Fails, as [`CommandFailed`], if it exits with anything but 0.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.run_within(RUN_LIMIT, command)
    }

    /// [`Vm::run`] with another limit than two minutes.
    pub fn run_within(&mut self, limit: Duration, command: &str) -> Result<String> {
        let finished = self.try_run_within(limit, command)?;
        if finished.code == 0 {
            return Ok(finished.output);
        }
        Err(CommandFailed { command: command.to_owned(), finished }.into())
    }

    /// Runs a shell command that may fail.
    pub fn try_run(&mut self, command: &str) -> Result<Finished> {
        self.try_run_within(RUN_LIMIT, command)
    }

    /// [`Vm::try_run`] with another limit than two minutes.
    pub fn try_run_within(&mut self, limit: Duration, command: &str) -> Result<Finished> {
        if self.stuck {
            bail!("the guest is stuck in an earlier command; `{command}` cannot run");
        }
        let (start, limit) = (Instant::now(), self.limit(limit));
        writeln!(self.session, "$ {command}")?;
        let answer = self.run.call(command, limit)?;
        let seconds = start.elapsed().as_secs_f32();
        match answer {
            Ok(finished) => {
                writeln!(self.session, "{}\n[{} after {seconds:.1} s]", finished.output, finished.code)?;
                self.check_console()?;
                Ok(finished)
            }
            Err(Lost::Deadline(printed)) => {
                writeln!(self.session, "{printed}\n[no end after {seconds:.1} s]")?;
                self.stuck = true;
                let state = self.diagnose();
                bail!(
                    "`{command}` did not end in {limit:?}; it printed: {printed}\nthe guest's processes:\n{state}"
                )
            }
            Err(Lost::Closed(printed)) => {
                writeln!(self.session, "{printed}\n[the machine ended]")?;
                bail!("the machine ended during `{command}`; {}", self.remains.last_words())
            }
        }
    }

    /// Runs a command in the background, in a process group of its own, under a name. Begin it with no shell
    /// syntax, or with `exec`, and signals reach the program itself.
    pub fn spawn(&mut self, name: &str, command: &str) -> Result<()> {
        self.run(&format!("spawn '{name}' '{}'", base64(command.as_bytes()))).map(|_| ())
    }

    /// Sends a signal to a spawned command and everything it started.
    pub fn kill(&mut self, name: &str, signal: Signal) -> Result<()> {
        self.run(&format!("kill -{signal} -$(cat '/run/spawn/{name}.pid')")).map(|_| ())
    }

    /// Waits until a spawned command printed a line that contains `text`, and gives the line.
    pub fn wait_for(&mut self, name: &str, text: &str) -> Result<String> {
        let found = self.poll(|remains| {
            let lines = remains.log(name);
            let line = lines.lines().find(|line| line.contains(text)).map(str::to_owned);
            Ok(line.map(Ok).or_else(|| remains.exit_code(name).map(Err)))
        });
        match found.with_context(|| format!("waiting for {name} to print {text:?}"))? {
            Ok(line) => Ok(line),
            Err(code) => bail!("{name} ended with {code} and never printed {text:?}:\n{}", self.log(name)),
        }
    }

    /// Waits until a spawned command ended, and gives its exit code.
    pub fn wait_exit(&mut self, name: &str) -> Result<i32> {
        self.poll(|remains| Ok(remains.exit_code(name))).with_context(|| format!("waiting for {name} to end"))
    }

    /// What a spawned command has printed so far, in whole lines.
    pub fn log(&self, name: &str) -> String {
        self.remains.log(name)
    }

    /// The kernel's messages so far.
    pub fn console(&self) -> String {
        self.remains.console()
    }

    /// QEMU's process on the host.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// How long the machine took from start to taking commands, as a [`Deadline`] counts it.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Cuts the power: the machine is gone at once, with everything in its memory.
    pub fn power_cut(self) -> Remains {
        drop(self.qemu);
        self.remains
    }

    /// Shuts the machine down in order: everything written is on its disks.
    pub fn power_off(mut self) -> Result<Remains> {
        // The agent cannot answer any more, so a lost line is the expected answer.
        writeln!(self.session, "$ poweroff")?;
        let limit = self.limit(RUN_LIMIT);
        let _ = self.run.call("sync; poweroff -f", limit)?;
        self.qemu.wait(limit)?;
        Ok(self.remains)
    }

    /// When what this machine does counts as hung.
    pub fn deadline(&self) -> Deadline {
        Deadline::after(self.limit(RUN_LIMIT))
    }

    fn limit(&self, usual: Duration) -> Duration {
        usual.mul_f64((self.boot_time.as_secs_f64() / BOOT_USUAL.as_secs_f64()).max(1.0))
    }

    /// Polls what the guest has reported until there is an answer or the usual deadline passed.
    pub(crate) fn poll<T>(&mut self, mut look: impl FnMut(&Remains) -> Result<Option<T>>) -> Result<T> {
        let deadline = self.deadline();
        while !deadline.has_passed() {
            if let Some(found) = look(&self.remains)? {
                return Ok(found);
            }
            if !self.qemu.is_alive() {
                bail!("the machine ended; {}", self.remains.last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("nothing after {RUN_LIMIT:?}")
    }

    /// Fails if the kernel complained since the last look.
    fn check_console(&mut self) -> Result<()> {
        let complaint = self.remains.complaint(self.console_read);
        self.console_read = self.remains.console().len();
        match complaint {
            None => Ok(()),
            Some(line) => bail!("the guest's kernel complains: {line}"),
        }
    }

    /// What the guest is doing, asked over the second line; blocked tasks go to the kernel log as well.
    fn diagnose(&mut self) -> String {
        let command = "echo w >/proc/sysrq-trigger; ps -o pid,ppid,stat,args | grep -v '\\[.*\\]$'";
        let state = match self.rescue.call(command, self.limit(RESCUE_LIMIT)) {
            Ok(Ok(finished)) => finished.output,
            _ => "the guest does not answer at all".to_owned(),
        };
        // Only for the reader of the logs; the error carries it too.
        let _ = writeln!(self.session, "{state}");
        state
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

impl fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finished { code, output } = &self.finished;
        write!(f, "`{}` exited with {code} in the guest and printed:\n{output}", self.command)
    }
}

impl std::error::Error for CommandFailed {}
