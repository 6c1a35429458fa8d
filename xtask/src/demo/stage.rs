//! The steps both stories are made of, each said, shown and done on whatever machine the story is about.

use anyhow::{Result, bail, ensure};
use vm_tests::{Finished, Signal};

use super::machine::Machine;
use super::screen::Screen;

/// A machine, and the screen its story is told on.
pub(crate) struct Stage<'s> {
    pub(crate) machine: &'s mut dyn Machine,
    pub(crate) screen: &'s mut Screen,
}

/// A file system the stories are told with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
}

/// Where a disk is served from, and where it is used.
pub(crate) struct Disk {
    /// The file that is served.
    pub(crate) file: String,
    pub(crate) socket: String,
    /// Where its file system is mounted.
    pub(crate) mount: String,
    /// The server's durability mode.
    pub(crate) durability: &'static str,
}

/// What must be found again: a checksum and a name in each line.
pub(crate) struct Noted(String);

/// How much of what was noted is still there.
pub(crate) struct Found {
    pub(crate) whole: usize,
    pub(crate) of: usize,
}

impl Stage<'_> {
    pub(crate) fn say(&mut self, sentence: &str) -> Result<()> {
        self.screen.say(sentence)
    }

    /// Shows and runs a command that may fail.
    pub(crate) fn attempt(&mut self, command: &str) -> Result<Finished> {
        self.screen.command(self.machine.prompt(), command)?;
        let finished = self.machine.try_run(command)?;
        self.screen.output(&finished.output)?;
        Ok(finished)
    }

    /// Shows and runs a command that must not fail.
    pub(crate) fn run(&mut self, command: &str) -> Result<String> {
        let Finished { code, output } = self.attempt(command)?;
        ensure!(code == 0, "`{command}` failed ({code}): {output}");
        Ok(output)
    }

    /// Starts the server and attaches its disk; gives the device.
    pub(crate) fn attach(&mut self, disk: &Disk) -> Result<String> {
        let server =
            format!("nbd-server --durability {} --unix {} {}", disk.durability, disk.socket, disk.file);
        self.screen.command(self.machine.prompt(), &format!("{server} &"))?;
        let uri = self.machine.serve(&server)?;
        self.screen.output(&uri)?;
        let said = self.run(&format!("nbd-attach attach '{uri}'"))?;
        let Some(device) = said.lines().find(|line| line.starts_with("/dev/")) else {
            bail!("nbd-attach named no device but said: {said}");
        };
        Ok(device.to_owned())
    }

    /// Makes a file system and files on it, makes them durable, and notes their checksums.
    pub(crate) fn fill(&mut self, fs: FileSystem, device: &str, disk: &Disk) -> Result<Noted> {
        let mount = &disk.mount;
        self.say(&format!("An {} file system on it, like on any disk:", fs.name()))?;
        self.run(&format!("{} {device} && mount {device} {mount}", fs.make()))?;
        self.say("Eight files of 1 MiB, each followed by fsync (that is conv=fsync), and their checksums:")?;
        let write = "dd if=/dev/urandom bs=64k count=16 conv=fsync status=none";
        self.run(&format!("for n in 1 2 3 4 5 6 7 8; do {write} of={mount}/file-$n; done"))?;
        let sums = self.run(&format!("cd {mount} && sha256sum file-*"))?;
        Ok(Noted(sums))
    }

    /// Mounts what should hold the noted files, and compares.
    pub(crate) fn find(&mut self, noted: &Noted, device: &str, disk: &Disk) -> Result<Found> {
        let mount = &disk.mount;
        let of = noted.0.lines().count();
        if self.attempt(&format!("mount {device} {mount}"))?.code != 0 {
            return Ok(Found { whole: 0, of });
        }
        let name = device.trim_start_matches("/dev/");
        self.attempt(&format!("dmesg | grep -E '\\({name}\\).*([Rr]ecovery|[Mm]ount)' | tail -n 2"))?;
        self.say("The checksums again:")?;
        let sums = self.attempt(&format!("cd {mount} && sha256sum file-*"))?.output;
        let whole = noted.0.lines().filter(|line| sums.lines().any(|now| now == *line)).count();
        Ok(Found { whole, of })
    }

    /// Unmounts, lets the file system's own checker judge, detaches, and ends the server.
    pub(crate) fn put_away(&mut self, fs: FileSystem, device: &str, disk: &Disk) -> Result<()> {
        self.say("The file system's own checker has the last word:")?;
        self.run(&format!("umount {} && {} {device} >/dev/null 2>&1 && echo clean", disk.mount, fs.check()))?;
        self.run(&format!("nbd-attach detach {device}"))?;
        self.machine.stop(Signal::Term)
    }
}

impl FileSystem {
    pub(crate) fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    fn make(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "mkfs.ext4 -q",
            FileSystem::Xfs => "mkfs.xfs -q",
        }
    }

    /// A command that finds faults and changes nothing.
    fn check(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "e2fsck -fn",
            FileSystem::Xfs => "xfs_repair -n",
        }
    }
}

impl Found {
    pub(crate) fn everything(&self) -> bool {
        self.of > 0 && self.whole == self.of
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} fsynced files are there and whole", self.whole, self.of)
    }
}
