//! A running guest. Commands are run one by one and checked; daemons are spawned, watched and killed by name; the
//! power can be cut, which leaves only what reached the disks and the logs.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

pub use crate::channel::Finished;
use crate::channel::{Channel, Lost, base64};
use crate::image::Image;
use crate::kernel::Kernel;
use crate::kit::Kit;
use crate::qemu::{Machine, Outputs, Qemu};

/// Where the guest finds the host's port that [`Builder::host_port`] opened, as host and port.
pub const HOST_PORT: &str = "10.0.2.100:10809";

/// Emulation on a busy machine is slow, and a deadline is there to end a hang, not to measure.
const RUN_LIMIT: Duration = Duration::from_secs(120);
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const RESCUE_LIMIT: Duration = Duration::from_secs(10);
/// Kernel messages after which nothing the guest says is worth anything.
const COMPLAINTS: &[&str] = &["Kernel panic", "Oops:", "BUG:", "general protection fault", "WARNING: CPU:"];

/// A machine to be.
pub struct Builder {
    pub(crate) kernel: Kernel,
    pub(crate) kits: Vec<Kit>,
    pub(crate) log: PathBuf,
    modules: Vec<String>,
    cpus: u32,
    memory_mib: u32,
    disks: Vec<PathBuf>,
    host_port: Option<u16>,
}

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

/// What is left of a guest when the power is gone: its logs. Its disks are the files they always were.
pub struct Remains {
    log: PathBuf,
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
}

/// A guest command that exited with something other than 0.
#[derive(Debug)]
pub struct CommandFailed {
    /// The command.
    pub command: String,
    /// How it ended.
    pub finished: Finished,
}

impl Builder {
    pub(crate) fn new(kernel: Kernel, kits: Vec<Kit>, log: PathBuf) -> Builder {
        let (modules, disks) = (Vec::new(), Vec::new());
        Builder { kernel, kits, log, modules, cpus: 2, memory_mib: 1024, disks, host_port: None }
    }

    /// Processors; the nbd driver uses a connection per processor. Default 2.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory; the root file system lives in it. Default 1024.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Attaches a raw file as the next virtio disk: /dev/vda, /dev/vdb, … What the guest wrote to it survives
    /// a power cut; what the guest only cached does not.
    pub fn disk(mut self, file: impl Into<PathBuf>) -> Self {
        self.disks.push(file.into());
        self
    }

    /// Lets the guest reach this port of the host's loopback, at [`HOST_PORT`], and nothing else of the host.
    pub fn host_port(mut self, port: u16) -> Self {
        self.host_port = Some(port);
        self
    }

    /// Puts a further kernel module into the image, for the guest to `modprobe`.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Puts a further kit into the image.
    pub fn with(mut self, kit: Kit) -> Self {
        self.kits.push(kit);
        self
    }

    /// Starts the machine and waits until it takes commands.
    pub fn boot(self) -> Result<Vm> {
        let image = Image::new(&self.kernel, &self.kits, &self.modules)?.build()?;
        let kernel = self.kernel.image().context("the cached kernel has no image; run cargo xtask install")?;
        let remains = Remains { log: self.log };
        let outputs = remains.outputs();
        let session = File::create(remains.file("session"))?;
        // Not only for the reader: whoever looks before QEMU made them must find them.
        File::create(&outputs.spawned)?;
        let machine = Machine {
            kernel,
            image,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            disks: self.disks,
            host_port: self.host_port,
        };
        let start = Instant::now();
        let (qemu, run, rescue) = Qemu::start(&machine, &outputs)?;
        let boot_time = Duration::ZERO;
        let (console_read, stuck) = (0, false);
        let mut vm = Vm { qemu, run, rescue, remains, session, console_read, boot_time, stuck, _stays: PhantomData };
        for agent in [&mut vm.rescue, &mut vm.run] {
            agent.ready(BOOT_LIMIT).map_err(|_| anyhow!("the guest did not come up; {}", vm.remains.last_words()))?;
        }
        vm.boot_time = start.elapsed();
        Ok(vm)
    }
}

impl Vm {
    /// Runs a shell command and gives what it printed. Fails, as [`CommandFailed`], if it exits with anything but 0.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.run_within(RUN_LIMIT, command)
    }

    /// [`Vm::run`] with another deadline than two minutes.
    pub fn run_within(&mut self, limit: Duration, command: &str) -> Result<String> {
        let finished = self.try_run_within(limit, command)?;
        if finished.code == 0 {
            return Ok(finished.output);
        }
        let failed = CommandFailed { command: command.to_owned(), finished };
        Err(anyhow!(failed).context(format!("see {}", self.remains.log.display())))
    }

    /// Runs a shell command that may fail.
    pub fn try_run(&mut self, command: &str) -> Result<Finished> {
        self.try_run_within(RUN_LIMIT, command)
    }

    /// [`Vm::try_run`] with another deadline than two minutes.
    pub fn try_run_within(&mut self, limit: Duration, command: &str) -> Result<Finished> {
        if self.stuck {
            bail!("the guest is stuck in an earlier command; `{command}` cannot run");
        }
        let start = Instant::now();
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
                bail!("`{command}` did not end in {limit:?}; it printed: {printed}\nthe guest's processes:\n{state}")
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

    /// How long the machine took from start to taking commands.
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
        let _ = self.run.call("sync; poweroff -f", RUN_LIMIT)?;
        self.qemu.wait(RUN_LIMIT)?;
        Ok(self.remains)
    }

    /// Polls what the guest has reported until there is an answer or the usual deadline passed.
    fn poll<T>(&mut self, mut look: impl FnMut(&Remains) -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + RUN_LIMIT;
        while Instant::now() < deadline {
            if let Some(found) = look(&self.remains)? {
                return Ok(found);
            }
            if !self.qemu.is_alive() {
                bail!("the machine ended; {}", self.remains.last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("nothing after {RUN_LIMIT:?}; see {}", self.remains.log.display())
    }

    /// Fails if the kernel complained since the last look.
    fn check_console(&mut self) -> Result<()> {
        let console = self.remains.console();
        let new = console.get(self.console_read..).unwrap_or_default();
        let complaint = new.lines().find(|line| COMPLAINTS.iter().any(|words| line.contains(words)));
        let complaint = complaint.map(str::to_owned);
        self.console_read = console.len();
        match complaint {
            None => Ok(()),
            Some(line) => bail!("the guest's kernel complains: {line}\nsee {}", self.remains.log.display()),
        }
    }

    /// What the guest is doing, asked over the second line; blocked tasks go to the kernel log as well.
    fn diagnose(&mut self) -> String {
        let command = "echo w >/proc/sysrq-trigger; ps -o pid,ppid,stat,args; grep -H . /proc/*/wchan 2>/dev/null";
        let state = match self.rescue.call(command, RESCUE_LIMIT) {
            Ok(Ok(finished)) => finished.output,
            _ => "the guest does not answer at all".to_owned(),
        };
        // Only for the reader of the logs; the error carries it too.
        let _ = writeln!(self.session, "{state}");
        state
    }
}

impl Remains {
    /// What a spawned command printed, in whole lines; a line cut short by the power is not among them.
    pub fn log(&self, name: &str) -> String {
        let prefix = format!("{name}: ");
        let ours = |line: &str| line.strip_prefix(&prefix).map(|text| format!("{text}\n"));
        self.spawned_lines().iter().filter_map(|line| ours(line)).collect()
    }

    /// The kernel's messages.
    pub fn console(&self) -> String {
        read_text(&self.outputs().console)
    }

    fn exit_code(&self, name: &str) -> Option<i32> {
        let (started, ended) = (format!("{name}>"), format!("{name}! "));
        let lines = self.spawned_lines();
        let last = lines.iter().rev().find(|line| **line == started || line.starts_with(&ended))?;
        last.strip_prefix(&ended)?.parse().ok()
    }

    fn spawned_lines(&self) -> Vec<String> {
        let text = read_text(&self.outputs().spawned);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    fn last_words(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("its last words (see {}):\n{last}", self.log.display())
    }

    fn outputs(&self) -> Outputs {
        Outputs { console: self.file("console"), spawned: self.file("spawned"), qemu: self.file("qemu") }
    }

    fn file(&self, what: &str) -> PathBuf {
        self.log.with_extension(format!("{what}.log"))
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

fn read_text(path: &PathBuf) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
