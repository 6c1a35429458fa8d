//! Judges by this machine's kernel: each state is mounted, every file that a workload has promised is read, and it is
//! unmounted again. Needs root, the nbd driver and nbd-attach; all states go through one device.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use nbd_server::engine::ioctl;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::{Expectation, Oracle};
use crate::history::History;
use crate::image::Image;
use crate::serve::Served;
use crate::workload::model::{Contents, Found};

/// The judge.
pub struct MountOracle {
    expectation: Expectation,
    fs: String,
    served: Served,
    device: Device,
    root: PathBuf,
    _directory: TempDir,
}

/// An attached device, until it is dropped.
struct Device {
    path: PathBuf,
    file: File,
}

impl MountOracle {
    /// One for a history whose marks are a workload's, on a file system of that type.
    pub fn new(history: Arc<History>, fs: &str) -> anyhow::Result<MountOracle> {
        let (served, uri, directory) = Served::in_private(history.header.size)?;
        let root = directory.path().join("root");
        fs::create_dir(&root)?;
        let device = Device::attach(&uri.to_string())?;
        let (expectation, fs) = (Expectation::new(history), fs.to_owned());
        Ok(MountOracle { expectation, fs, served, device, root, _directory: directory })
    }
}

impl Oracle for MountOracle {
    fn judge(&mut self, time: usize, image: &Arc<Image>) -> anyhow::Result<Vec<String>> {
        let model = self.expectation.at(time)?;
        if model.is_empty() {
            return Ok(Vec::new());
        }
        self.served.show(image);
        self.device.forget()?;
        let none: Option<&str> = None;
        let faults =
            match mount(Some(&self.device.path), &self.root, Some(&self.fs[..]), MsFlags::empty(), none) {
                Err(error) => vec![format!("the file system cannot be mounted: {}", error.desc())],
                Ok(()) => {
                    let names = model.names();
                    let faults =
                        names.filter_map(|name| model.judge(name, &look(&self.root, name))).collect();
                    umount2(&self.root, MntFlags::empty()).context("cannot unmount a state")?;
                    faults
                }
            };
        self.served.clear();
        Ok(faults)
    }

    fn promises(&mut self, time: usize) -> anyhow::Result<u64> {
        Ok(self.expectation.at(time)?.version)
    }
}

impl Device {
    fn attach(uri: &str) -> anyhow::Result<Device> {
        let attach =
            Command::new("nbd-attach").args(["attach", uri]).output().context("cannot run nbd-attach")?;
        let said = String::from_utf8_lossy(&attach.stderr);
        ensure!(attach.status.success(), "nbd-attach failed: {}", said.trim());
        let path = PathBuf::from(String::from_utf8(attach.stdout)?.trim());
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        ensure!(file.metadata()?.file_type().is_block_device(), "{} is no block device", path.display());
        Ok(Device { path, file })
    }

    /// Makes the kernel forget what it has read: another state is there now.
    fn forget(&self) -> anyhow::Result<()> {
        ioctl::flush_buffers(&self.file).context("cannot make the kernel forget a state")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Whoever sees it left attached can detach it by the same command.
        let _ = Command::new("nbd-attach").arg("detach").arg(&self.path).output();
    }
}

fn look(root: &Path, name: &str) -> Found {
    let path = root.join(name);
    let read = || -> std::io::Result<Found> {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            return Ok(Found::Directory);
        }
        Ok(Found::File(Contents { size: metadata.len(), data: fs::read(&path)? }))
    };
    match read() {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Found::Absent,
        Err(error) => Found::Unreadable(error.to_string()),
    }
}
