//! What a guest is made of, and its start.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::channel::Lost;
use crate::image::Image;
use crate::kernel::Kernel;
use crate::kit::Kit;
use crate::patience::Deadline;
use crate::qemu::{Machine, Qemu};
use crate::remains::Remains;
use crate::slot;
use crate::vm::Vm;

/// Where the guest finds the host's port that [`Builder::host_port`] opened, as host and port.
pub const HOST_PORT: &str = "10.0.2.100:10809";

/// Many times what a boot takes under emulation on a busy machine: a hang, not a slow start.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// One emulated boot in some hundreds hangs, as a timer is lost while the processors come up, and a rarer one ends
/// without a word. The boot is not what is tested. A kernel that panics says so, and is believed at once.
const BOOTS_MAX: u32 = 3;
/// QEMU has closed its sockets and only has to exit.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A machine to be.
pub struct Builder {
    kernel: Kernel,
    kits: Vec<Kit>,
    log: PathBuf,
    modules: Vec<String>,
    cpus: u32,
    memory_mib: u32,
    disks: Vec<PathBuf>,
    host_port: Option<u16>,
    boot_limit: Duration,
}

impl Builder {
    pub(crate) fn new(kernel: Kernel, kits: Vec<Kit>, log: PathBuf) -> Builder {
        let (modules, disks) = (Vec::new(), Vec::new());
        Builder {
            kernel,
            kits,
            log,
            modules,
            cpus: 2,
            memory_mib: 1024,
            disks,
            host_port: None,
            boot_limit: BOOT_LIMIT,
        }
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

    /// Attaches what an NBD server serves on a port of the host's loopback as the next virtio disk; its write cache is
    /// the server's.
    pub fn disk_at(self, port: u16) -> Self {
        self.disk(format!("nbd://127.0.0.1:{port}"))
    }

    /// Lets the guest reach this port of the host's loopback, at [`HOST_PORT`], and nothing else of the host.
    pub fn host_port(mut self, port: u16) -> Self {
        self.host_port = Some(port);
        self
    }

    /// How long one boot may take before it counts as hung. Default a minute.
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.boot_limit = limit;
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
        let remains = Remains::new(self.log);
        let mut session = File::create(remains.session())?;
        let outputs = remains.outputs();
        // Not only for the reader: whoever looks before QEMU made it must find it.
        File::create(&outputs.spawned)?;
        let image = Image::new(&self.kernel, &self.kits, &self.modules)?;
        let mut machine = Machine {
            kernel: self.kernel.image().context("the cached kernel has no image; run cargo xtask install")?,
            image: image.build()?,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            disks: self.disks,
            host_port: self.host_port,
            quiet: true,
        };
        let mut attempt = 1;
        loop {
            let slot = slot::take()?;
            let boot = Deadline::after(self.boot_limit);
            let (mut qemu, mut run, mut rescue) = Qemu::start(&machine, &outputs, slot)?;
            let up = rescue.ready(self.boot_limit).and_then(|()| run.ready(self.boot_limit));
            let boot_time = boot.spent();
            let (kernel, seconds) = (self.kernel.release.package(), boot_time.as_secs_f32());
            let (why, again) = match up {
                Ok(()) => {
                    writeln!(session, "[{kernel}: up after {seconds:.1} s]")?;
                    return Ok(Vm::new(qemu, run, rescue, remains, session, boot_time));
                }
                Err(Lost::Deadline(_)) => ("hangs".to_owned(), true),
                Err(Lost::Closed(_)) => {
                    (format!("ended ({})", qemu.wait(END_LIMIT)?), remains.console().is_empty())
                }
            };
            drop(qemu);
            let words = format!("the guest {why} in boot {attempt} of {kernel} after {seconds:.1} s");
            if !again || attempt == BOOTS_MAX {
                bail!("{words}; {}", remains.last_words());
            }
            eprintln!("{words}; once more");
            machine.quiet = false;
            attempt += 1;
        }
    }
}
