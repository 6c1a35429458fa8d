//! Recordings of real file systems: a guest does what a workload says on a device of ours, and the server records it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::scene::Scene;
use crate::vm::Signal;
use crate::{guest, paths};

/// A file system that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Needs [`crate::Kit::Ext4`].
    Ext4,
    /// Needs [`crate::Kit::Xfs`].
    Xfs,
    /// Needs [`crate::Kit::Btrfs`].
    Btrfs,
}

/// What to record.
#[derive(Debug, Clone, Copy)]
pub struct Recording<'a> {
    /// The file system.
    pub fs: Subject,
    /// The server's durability mode.
    pub mode: &'a str,
    /// Connections, and processors of the guest.
    pub connections: u32,
    /// The text of the workload.
    pub workload: &'a str,
}

/// What the explorer calls the contracts of servers that promise less than the protocol wants.
pub const BROKEN: [&str; 5] = ["own-connection", "no-fua", "late-flush", "no-flush", "unsafe"];
/// Room for a recording.
const LOG: u64 = 256 << 20;

impl fmt::Display for Subject {
    /// As mount(8) calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl Recording<'_> {
    /// Bytes of the device: as few as it takes.
    fn size(self) -> &'static str {
        match self.fs {
            Subject::Ext4 => "32M",
            Subject::Xfs => "64M",
            Subject::Btrfs => "128M",
        }
    }

    fn make(self, device: &str) -> String {
        match self.fs {
            Subject::Ext4 => format!(
                "mkfs.ext4 -q -F -b 4096 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 {device}"
            ),
            Subject::Xfs => format!("mkfs.xfs -q -f --unsupported -l size=8m {device}"),
            Subject::Btrfs => format!("mkfs.btrfs -q -f -m single {device}"),
        }
    }

    /// Boots a guest, carries the workload out, and gives the recording: a file of the scene's.
    pub fn make_in(self, scene: &Scene) -> Result<PathBuf> {
        let Recording { fs, mode, connections, workload } = self;
        let log = scene.disk(&format!("{fs}-{connections}-{mode}.nbdrec"), LOG)?;
        let vm = scene.vm().cpus(connections.max(2)).disk(&log);
        let vm = if fs == Subject::Btrfs { vm.module("btrfs") } else { vm };
        let mut vm = vm.boot()?;
        let record = "--record /tmp/log --marks /run/marks";
        let uri = vm.serve("server", &format!("--durability {mode} {record} memory:{}", self.size()))?;
        let device = vm.attach(&uri, &format!("--connections {connections}"))?;
        vm.run(&format!("cat >/tmp/workload <<'END'\n{workload}\nEND"))?;
        vm.run(&format!("{} && mount {device} /mnt", self.make(&device)))?;
        vm.run("nbd-crash workload /tmp/workload --root /mnt --marks /run/marks")?;
        vm.run(&format!("umount /mnt && nbd-attach detach {device}"))?;
        vm.kill("server", Signal::Term)?;
        vm.wait_exit("server")?;
        vm.run("dd if=/tmp/log of=/dev/vda bs=1M conv=fsync 2>&1")?;
        let length = vm.run("stat -c %s /tmp/log")?.parse().context("a length")?;
        drop(vm.power_cut());
        OpenOptions::new().write(true).open(&log)?.set_len(length)?;
        Ok(log)
    }
}

/// A recording that is kept with the explorer.
pub fn trace(name: &str) -> PathBuf {
    paths::workspace().join("nbd-crash/traces").join(name).with_extension("nbdrec.gz")
}

/// Our explorer for this machine.
pub fn explorer() -> Result<PathBuf> {
    guest::host_program("nbd-crash")
}

/// Keeps a recording, compressed.
pub fn keep(recording: &Path, as_file: &Path) -> Result<()> {
    let gzip = std::process::Command::new("gzip").args(["-9", "-n", "-c"]).arg(recording).output()?;
    anyhow::ensure!(gzip.status.success(), "gzip failed: {}", String::from_utf8_lossy(&gzip.stderr));
    fs::write(as_file, gzip.stdout).with_context(|| format!("cannot write {}", as_file.display()))
}
