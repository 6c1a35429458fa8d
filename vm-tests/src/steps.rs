//! Steps that most tests of the product take: serve, attach, make a file system, keep promises, count.

use anyhow::{Context, Result, ensure};

use crate::promise::{Promises, Verdict};
use crate::vm::{Signal, Vm};

/// A file system to live on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fs {
    /// ext4; needs [`crate::Kit::Ext4`].
    Ext4,
    /// xfs; needs [`crate::Kit::Xfs`].
    Xfs,
}

/// What `nbd-attach status --json` prints where nothing is attached.
pub const NOTHING_ATTACHED: &str = r#"{"version":3,"devices":[]}"#;
/// Room for any [`Fs`].
pub const DISK: u64 = 128 << 20;

/// What a server says it did for its one export.
#[derive(Debug, Clone)]
pub struct Counters {
    line: String,
}

impl Fs {
    /// The command that makes one, for a device.
    pub fn make(self, device: &str) -> String {
        match self {
            Fs::Ext4 => format!("mkfs.ext4 -q -F {device}"),
            // An ordinary log has 64 MiB, which a recovery reads at emulated speed.
            Fs::Xfs => format!("mkfs.xfs -q -f --unsupported -l size=8m {device}"),
        }
    }

    /// The command that finds faults in one, for a device that is not mounted.
    pub fn check(self, device: &str) -> String {
        match self {
            Fs::Ext4 => format!("e2fsck -fn {device}"),
            Fs::Xfs => format!("xfs_repair -n {device}"),
        }
    }
}

impl Counters {
    /// The counters, if a line of the server's log tells them.
    pub(crate) fn told(line: &str) -> Option<Counters> {
        line.contains(" counters export=").then(|| Counters { line: line.to_owned() })
    }

    /// The counter of this name.
    pub fn count(&self, name: &str) -> Result<u64> {
        let value = |word: &str| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        self.line.split_whitespace().find_map(value).with_context(|| format!("no {name} in {}", self.line))
    }
}

impl Vm {
    /// From now on nothing reaches a disk unless somebody asks for it: the kernel's own habit of writing back would
    /// hide what a server forgets.
    pub fn stop_writing_back(&mut self) -> Result<()> {
        let ratios = "echo 95 >dirty_ratio; echo 90 >dirty_background_ratio";
        self.run(&format!("cd /proc/sys/vm; {ratios}; echo 0 >dirty_writeback_centisecs")).map(drop)
    }

    /// The opposite of [`Vm::make_fs`]: unmounts, finds no fault in the file system, and detaches the device.
    pub fn put_away(&mut self, fs: Fs, device: &str) -> Result<()> {
        self.run(&format!("umount {device} && {} && nbd-attach detach {device}", fs.check(device))).map(drop)
    }

    /// Mounts what is on a device and looks whether it keeps the promises; one that cannot be mounted breaks them all.
    pub fn recover(&mut self, device: &str, at: &str, promises: &Promises) -> Result<Verdict> {
        let mounted = self.try_run(&format!("mkdir -p {at}; mount {device} {at}"))?;
        if mounted.code != 0 {
            return Ok(Verdict { promised: promises.len(), lost: vec![mounted.output] });
        }
        self.verify(at, promises)
    }

    /// Starts our server on a Unix socket named after it, and gives the URI once it serves.
    pub fn serve(&mut self, name: &str, arguments: &str) -> Result<String> {
        self.spawn(name, &format!("exec nbd-server --unix /run/{name}.sock {arguments}"))?;
        // Standard error says it too, after the time.
        let line = self.wait_for(name, "nbd+unix:")?;
        Ok(line[line.find("nbd+unix:").unwrap_or(0)..].to_owned())
    }

    /// Attaches a URI by our tool and gives the device.
    pub fn attach(&mut self, uri: &str, options: &str) -> Result<String> {
        let attach = format!("nbd-attach attach '{uri}' {options} 2>/run/attach.err");
        let out = self.run(&format!("{attach} || {{ cat /run/attach.err; exit 1; }}"))?;
        ensure!(out.starts_with("/dev/nbd"), "attached as {out:?}");
        Ok(out)
    }

    /// Makes a file system on a device and mounts it.
    pub fn make_fs(&mut self, fs: Fs, device: &str, at: &str) -> Result<()> {
        self.run(&format!("{} && mkdir -p {at} && mount {device} {at}", fs.make(device))).map(drop)
    }

    /// What a spawned server has done until now.
    pub fn counters(&mut self, name: &str) -> Result<Counters> {
        let before = self.log(name).lines().filter_map(Counters::told).count();
        self.kill(name, Signal::Usr1)?;
        self.poll(|remains| {
            let log = remains.log(name);
            Ok(log.lines().filter_map(Counters::told).nth(before))
        })
        .with_context(|| format!("waiting for the counters of {name}"))
    }

    /// Starts `promise` in a directory.
    pub fn promise(&mut self, name: &str, at: &str, writers: u32, seed: u64) -> Result<()> {
        self.spawn(name, &format!("exec promise write {at} {writers} {seed}"))
    }

    /// Ends a spawned command at once.
    pub fn end(&mut self, name: &str) -> Result<()> {
        self.kill(name, Signal::Kill)?;
        self.wait_exit(name).map(drop)
    }

    /// Waits until a `promise` has made this many promises.
    pub fn wait_for_promises(&mut self, name: &str, count: u64) -> Result<()> {
        self.wait_for(name, &format!("#{count} ")).map(drop)
    }

    /// The guest's time, in seconds since its boot.
    pub fn uptime(&mut self) -> Result<f64> {
        Ok(self.run("cut -d' ' -f1 /proc/uptime")?.parse()?)
    }

    /// Looks whether a directory keeps the promises.
    pub fn verify(&mut self, at: &str, promises: &Promises) -> Result<Verdict> {
        ensure!(!promises.is_empty(), "nothing was promised at {at}");
        let finished = self.try_run(&format!("promise verify {at} <<'END'\n{}END\n", promises.list()))?;
        let lost: Vec<_> = finished.output.lines().filter(|line| line.starts_with("lost ")).collect();
        ensure!((finished.code == 0) == lost.is_empty(), "promise verify failed: {}", finished.output);
        let lost = lost.into_iter().map(str::to_owned).collect();
        Ok(Verdict { promised: promises.len(), lost })
    }
}
