//! What is served and by whom: storage that can be taken away, changed and put back between two servers.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tests::client::Client;
use tests::failing_disk::{FailingDisk, HALF, Medium};
use tests::mount::{LoopDevice, Mount, make_ext4};
use tests::operator::Operator;
use tests::server::Server;

/// Bytes of one write.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of what is served.
pub(crate) const SIZE: u64 = 1 << 20;
/// Bytes of the file system that holds it.
const FILE_SYSTEM: u64 = 16 << 20;

/// A kind of storage. Named as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "they are the names of modules, too")]
pub(crate) enum Storage {
    /// A file on ext4, which keeps its record itself.
    file,
    /// A file on ramfs, whose record is in a state directory.
    file_without_attributes,
    /// A loop device, whose record is in a state directory.
    device,
    /// A file on a disk that fails in the kernel.
    failing_file,
    /// A device that fails in the kernel.
    failing_device,
}

impl Storage {
    /// Whether the write before the happening goes where it cannot be made stable.
    pub(crate) fn fails(self) -> bool {
        matches!(self, Storage::failing_file | Storage::failing_device)
    }
}

/// What is served. The parts are taken down in this order.
pub(crate) struct Scene {
    pub(crate) storage: Storage,
    mode: String,
    /// What fails in the kernel, if it does.
    pub(crate) failing: Option<FailingDisk>,
    /// What holds a file that works.
    mounted: Option<Mount>,
    /// What a device or a file system that works is on.
    device: Option<LoopDevice>,
    tmpfs: Mount,
    dir: TempDir,
}

/// A running server with its one client.
pub(crate) struct Run {
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) operator: Operator,
}

impl Run {
    /// The epoch, as clients and the operator are told it.
    pub(crate) fn epoch(&self) -> String {
        let epoch = self.operator.epoch();
        let client = Client::connect(self.server.endpoint());
        let told = client.export.description.expect("the server describes its exports");
        assert!(told.ends_with(&format!("epoch={epoch}")), "{told}, and the operator is told {epoch}");
        epoch
    }
}

impl Scene {
    /// Storage that nobody has served yet.
    pub(crate) fn new(storage: Storage, mode: &str) -> Result<Scene> {
        let dir = tempfile::tempdir()?;
        let tmpfs = Mount::tmpfs(&dir.path().join("tmpfs"), 8 * FILE_SYSTEM)?;
        let mode = mode.to_owned();
        let mut scene = Scene { storage, mode, failing: None, mounted: None, device: None, tmpfs, dir };
        match storage {
            Storage::file => {
                File::create_new(scene.backing()).and_then(|file| file.set_len(FILE_SYSTEM))?;
                make_ext4(&scene.backing())?;
                scene.attach()?;
                File::create_new(scene.path()).and_then(|file| file.set_len(SIZE))?;
                fs::write(scene.path(), old())?;
            }
            Storage::file_without_attributes => {
                scene.mounted = Some(Mount::ramfs(&scene.mount_point())?);
                fs::write(scene.path(), old())?;
            }
            Storage::device => {
                fs::write(scene.backing(), old())?;
                scene.attach()?;
            }
            Storage::failing_file => scene.failing = Some(FailingDisk::make(Medium::File)?),
            Storage::failing_device => scene.failing = Some(FailingDisk::make(Medium::Device)?),
        }
        Ok(scene)
    }

    /// Starts a server, which must listen at the first try.
    pub(crate) fn start(&self) -> Run {
        let operator = Operator::at(self.dir.path().join("admin"));
        // What early-ack holds, it holds until it must give it up.
        let builder = Server::builder().export(self.path()).unix().args(&["--durability", &self.mode]);
        let mut builder = builder.args(&["--dirty-age", if self.storage.fails() { "0" } else { "60" }]);
        if !matches!(self.storage, Storage::file | Storage::failing_file) {
            builder =
                builder.args(&["--state-dir", self.state().to_str().expect("temporary paths are text")]);
        }
        let server = operator.of(builder).start();
        let client = Client::connect(server.endpoint());
        Run { server, client, operator }
    }

    /// Where the first write goes.
    pub(crate) fn target(&self) -> u64 {
        if self.storage.fails() { HALF } else { 0 }
    }

    /// What is served.
    pub(crate) fn path(&self) -> PathBuf {
        match (&self.failing, self.storage) {
            (Some(failing), _) => failing.path().to_owned(),
            (None, Storage::device) => self.dir.path().join("device"),
            (None, _) => self.mount_point().join("disk.img"),
        }
    }

    /// The first block of what is at the path.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        File::open(self.path()).and_then(|mut file| file.read_exact(&mut block)).expect("it can be read");
        block
    }

    /// For more files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where records are kept that are not with the storage.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The file beneath the loop device.
    pub(crate) fn backing(&self) -> PathBuf {
        self.tmpfs.path().join("backing")
    }

    /// Takes the storage away from the kernel, which writes back what it holds.
    pub(crate) fn detach(&mut self) -> Result<()> {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount()?;
        }
        self.device = None;
        Ok(())
    }

    /// Gives the kernel what is in the backing file now.
    pub(crate) fn attach(&mut self) -> Result<()> {
        let device = LoopDevice::over(&self.backing())?;
        if self.storage == Storage::device {
            let _was_there = fs::remove_file(self.path());
            symlink(device.path(), self.path())?;
        } else {
            self.mounted = Some(Mount::ext4(device.path(), &self.mount_point())?);
        }
        self.device = Some(device);
        Ok(())
    }

    /// Tells the kernel that the backing file has another length.
    pub(crate) fn resize_device(&self) -> Result<()> {
        self.device.as_ref().context("a loop device")?.resize()
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

/// What is served at first.
pub(crate) fn old() -> Vec<u8> {
    vec![0xa5; usize::try_from(SIZE).expect("it is small")]
}
