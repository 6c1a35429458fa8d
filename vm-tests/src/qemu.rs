//! One QEMU process: its command line, and its end. It dies with the thread that started it, whatever way that
//! ends, so that no machine is ever left behind.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::accel::Accel;
use crate::channel::Channel;
use crate::patience::Deadline;
use crate::slot::Slot;
use crate::{guest, wait};

/// What the machine is made of.
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) host_port: Option<u16>,
    /// Whether the kernel keeps the messages of its boot to itself, which makes it faster.
    pub(crate) quiet: bool,
}

/// Where the machine's outputs go.
pub(crate) struct Outputs {
    pub(crate) console: PathBuf,
    pub(crate) spawned: PathBuf,
    pub(crate) qemu: PathBuf,
}

/// A running machine.
pub(crate) struct Qemu {
    child: Child,
    _sockets: TempDir,
    _slot: Slot,
}

/// A panic must end the machine, not hang the test. Ticks are periodic, because emulation loses a timer interrupt now
/// and then: a tick that repeats comes again, a one-shot timer never does, and with it goes every sleep and every RCU
/// grace period of its processor. For the same reason the kernel is not to check during its boot whether the timer's
/// interrupts come in time: on a busy machine they do not, and it panics.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 oops=panic mitigations=off random.trust_cpu=on nohz=off \
                                highres=off no_timer_check";
/// QEMU opens its sockets before the machine starts: a hang, not a slow start.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// The address at which the guest finds the one port of the host it may reach.
const HOST_ADDRESS: &str = "tcp:10.0.2.100:10809";

impl Qemu {
    /// Starts the machine and gives the lines to its two agents.
    pub(crate) fn start(
        machine: &Machine,
        outputs: &Outputs,
        slot: Slot,
    ) -> Result<(Qemu, Channel, Channel)> {
        let sockets = tempfile::tempdir()?;
        let paths = ["run", "rescue"].map(|name| sockets.path().join(name));
        let listeners = [UnixListener::bind(&paths[0])?, UnixListener::bind(&paths[1])?];
        let child = command(machine, outputs, &paths)?.spawn().context("cannot start QEMU")?;
        let mut qemu = Qemu { child, _sockets: sockets, _slot: slot };
        let run = qemu.connected(&paths[0], &listeners[0], outputs)?;
        let rescue = qemu.connected(&paths[1], &listeners[1], outputs)?;
        Ok((qemu, run, rescue))
    }

    /// Waits for QEMU to connect, or to end before it does.
    fn connected(&mut self, at: &Path, listener: &UnixListener, outputs: &Outputs) -> Result<Channel> {
        let end = wait::end_of(&self.child)?;
        let [connects, ends] = wait::readable([listener, &end], Deadline::after(CONNECT_LIMIT))?;
        if !connects {
            let said = std::fs::read_to_string(&outputs.qemu).unwrap_or_default();
            let what = if ends { "ended at once" } else { "does not connect" };
            bail!("QEMU {what}: {}", said.trim());
        }
        Channel::accept(at, listener)
    }

    /// Waits for the machine to end by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = wait::end_of(&self.child)?;
        match wait::readable([&end], Deadline::after(limit))? {
            [true] => Ok(self.child.wait()?),
            [false] => bail!("the machine still runs after {limit:?}"),
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True until the machine ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Qemu {
    /// The power goes: no goodbye to the guest.
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill and only the zombie to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(machine: &Machine, outputs: &Outputs, agents: &[PathBuf; 2]) -> Result<Command> {
    // The kernel kills QEMU when our thread ends, even by SIGKILL.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    command.args(["-display", "none", "-machine", "pc,usb=off,vmport=off", "-cpu", "max"]);
    command.args(["-accel", Accel::choose(&machine.kernel).option()]);
    command.args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()]);
    command.arg("-kernel").arg(&machine.kernel).arg("-initrd").arg(&machine.image);
    let quiet = if machine.quiet { " quiet" } else { "" };
    command.args(["-append", &format!("{KERNEL_ARGUMENTS}{quiet}")]);
    ports(&mut command, outputs, agents);
    for (number, disk) in machine.disks.iter().enumerate() {
        // The guest's own cache dies with the machine; what it wrote to this disk is in a file of the host and stays.
        let drive = format!(
            "file={},if=none,id=disk{number},format=raw,cache=writeback,discard=unmap",
            escaped(disk)
        );
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=disk{number}")]);
    }
    if let Some(port) = machine.host_port {
        let relay = format!("'{}' {port}", escaped(&guest::relay()?));
        let net = format!("user,id=net,restrict=on,ipv6=off,guestfwd={HOST_ADDRESS}-cmd:{relay}");
        command.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net,romfile="]);
    }
    let qemu_log = File::create(&outputs.qemu)?;
    command.stdin(Stdio::null()).stdout(qemu_log.try_clone()?).stderr(qemu_log);
    Ok(command)
}

/// The kernel's console, a serial port, and three virtio ports: two for the agents and one for what is spawned.
fn ports(command: &mut Command, outputs: &Outputs, agents: &[PathBuf; 2]) {
    let console = format!("file,id=console,path={}", escaped(&outputs.console));
    command.args(["-chardev", &console, "-device", "isa-serial,chardev=console"]);
    command.args(["-device", "virtio-serial-pci"]);
    let backends = [
        format!("socket,path={}", escaped(&agents[0])),
        format!("socket,path={}", escaped(&agents[1])),
        format!("file,path={}", escaped(&outputs.spawned)),
    ];
    for (backend, number) in backends.iter().zip(1..) {
        let port = format!("virtserialport,chardev=port{number},nr={number}");
        command.args(["-chardev", &format!("{backend},id=port{number}"), "-device", &port]);
    }
}

/// QEMU's options are separated by commas; one in a value is doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
