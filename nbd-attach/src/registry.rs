//! What this tool remembers of its devices, in `/run/nbd-attach`, which is in memory.
//!
//! Every attachment has files of its own, called by the random number at the end of its identifier: so nothing that is
//! left of one is ever taken for another's, and it is there before the kernel is asked for a device. The kernel is what
//! counts: a record is believed only while a device bears its identifier. It tells a keeper that is started anew what
//! it needs, and everybody else what the keeper knows.
//!
//! ```text
//!  NUMBER.json       the record                    NUMBER.let-go      whoever detaches it wants no connections
//!  NUMBER.keeper     locked by who keeps it        NUMBER.hand-over   another process is to keep it
//!  ID.id             locked by who attaches by it  nbdN.*             as release 0.1.0 wrote them
//! ```

mod record;

pub use record::{Connection, Phase, Record, Remembered, VERSION, word};

use crate::device::Index;
use crate::identifier::{self, Id};
use crate::sysfs::{DeviceDir, Sysfs};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The directory.
#[derive(Clone, Debug)]
pub struct Registry {
    root: PathBuf,
}

/// A right that ends with the process, however it ends.
#[derive(Debug)]
pub struct Lock {
    _files: Vec<File>,
}

/// What can be asked of whoever keeps a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To end its connections and make no more.
    LetGo,
    /// To end, because another process will keep it.
    HandOver,
}

impl Request {
    fn file(self) -> &'static str {
        match self {
            Request::LetGo => "let-go",
            Request::HandOver => "hand-over",
        }
    }
}

impl Registry {
    /// This machine's.
    #[must_use]
    pub fn system() -> Registry {
        Registry::at("/run/nbd-attach")
    }

    /// Elsewhere.
    pub fn at(root: impl Into<PathBuf>) -> Registry {
        Registry { root: root.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is remembered of the present attachment of a device.
    #[must_use]
    pub fn record(&self, device: &DeviceDir) -> Option<Record> {
        let backend = device.backend()?;
        let of_it = |path: PathBuf| Record::read(&path).filter(|record| record.backend == backend);
        of_it(self.file(&backend, "json")?).or_else(|| of_it(self.legacy(device.index, "json")))
    }

    /// Whether somebody has noted that the device is disconnected.
    #[must_use]
    pub fn is_disconnected(&self, backend: &str) -> bool {
        let record = self.file(backend, "json").and_then(|file| Record::read(&file));
        record.is_some_and(|record| record.phase == Phase::Disconnected)
    }

    /// Whether anything is remembered of an attachment.
    #[must_use]
    pub fn remembers(&self, backend: &str) -> bool {
        self.file(backend, "json").is_some_and(|file| file.exists())
    }

    /// Remembers it, whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written to, or the record is not of an attachment of this tool.
    pub fn remember(&self, record: &Record) -> io::Result<()> {
        let file = self.file(&record.backend, "json").ok_or(io::ErrorKind::InvalidInput)?;
        self.create()?;
        // Every writer writes its own, and the last one counts.
        let partial = file.with_extension(format!("{}.new", std::process::id()));
        let written =
            fs::write(&partial, serde_json::to_vec(record)?).and_then(|()| fs::rename(&partial, &file));
        written.map_err(|error| {
            // Half of it helps nobody, and may be what fills the place.
            let _ = fs::remove_file(&partial);
            self.about(&error)
        })
    }

    /// Forgets an attachment that has ended.
    pub fn forget(&self, backend: &str) {
        if let Some(number) = identifier::number(backend) {
            // Also what somebody was killed in the midst of writing.
            let of_it = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.strip_prefix(number).is_some_and(|rest| rest.starts_with('.'))
            };
            let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()).filter(of_it) {
                // Somebody else may have been quicker.
                let _ = fs::remove_file(path);
            }
        }
        if let Some(old) = self.legacy_record(backend) {
            let _ = fs::remove_file(old);
        }
    }

    /// Forgets what no device bears any more and nobody is about to make: what killed processes have left.
    pub fn sweep(&self, sysfs: &Sysfs) {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(number) = name.split('.').next().filter(|stem| identifier::is_number(stem)) {
                files.entry(number.to_owned()).or_default().push(path.clone());
            }
        }
        for (number, files) in files {
            // In this order: who has just made one has let its right go after that.
            let keeper = self.root.join(format!("{number}.keeper"));
            let right = open(&keeper);
            let free = right.is_ok_and(|file| file.try_lock().is_ok());
            let bears = |device: DeviceDir| {
                device.backend().is_some_and(|backend| identifier::number(&backend) == Some(&number))
            };
            let borne = sysfs.devices().map_or(true, |devices| devices.into_iter().any(bears));
            for path in files.iter().chain([&keeper]).filter(|_| free && !borne) {
                // Somebody else may have been quicker.
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Asks something of whoever keeps a device.
    ///
    /// # Errors
    /// The directory cannot be written to, or it is not a device of this tool.
    pub fn ask(&self, request: Request, backend: &str) -> io::Result<()> {
        let file = self.file(backend, request.file()).ok_or(io::ErrorKind::InvalidInput)?;
        self.create()?;
        fs::write(file, std::process::id().to_string()).map_err(|error| self.about(&error))
    }

    /// Whether that was asked.
    #[must_use]
    pub fn is_asked(&self, request: Request, backend: &str) -> bool {
        self.file(backend, request.file()).is_some_and(|file| file.exists())
    }

    /// Takes note that what was asked is done.
    pub fn done(&self, request: Request, backend: &str) {
        if let Some(file) = self.file(backend, request.file()) {
            // Nobody may have asked.
            let _ = fs::remove_file(file);
        }
    }

    /// The right to reconnect a device, or to make it; none while another process has it.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keeper(&self, backend: &str) -> io::Result<Option<Lock>> {
        let file = self.file(backend, "keeper").ok_or(io::ErrorKind::InvalidInput)?;
        self.create()?;
        let mut held = Vec::new();
        for path in std::iter::once(file).chain(self.legacy_keeper(backend)) {
            let file = open(&path).map_err(|error| self.about(&error))?;
            match file.try_lock() {
                Ok(()) => held.push(file),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(self.about(&error)),
            }
        }
        Ok(Some(Lock { _files: held }))
    }

    /// Whether somebody has that right. Anyone may look, and looking takes nothing away.
    #[must_use]
    pub fn is_kept(&self, backend: &str) -> bool {
        let files = [self.file(backend, "keeper"), self.legacy_keeper(backend)];
        let taken = |file: PathBuf| {
            File::open(file).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
        };
        files.into_iter().flatten().any(taken)
    }

    /// The right to attach something by this id, for which it waits.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn naming(&self, id: &Id) -> io::Result<Lock> {
        self.create()?;
        let file = open(&self.root.join(format!("{id}.id"))).map_err(|error| self.about(&error))?;
        file.lock()?;
        Ok(Lock { _files: vec![file] })
    }

    /// What a keeper of release 0.1.0 has locked.
    fn legacy_keeper(&self, backend: &str) -> Option<PathBuf> {
        Some(self.legacy_record(backend)?.with_extension("keeper")).filter(|path| path.exists())
    }

    /// What release 0.1.0 wrote of an attachment.
    fn legacy_record(&self, backend: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut old = entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("nbd") && name.ends_with(".json")
        });
        old.find(|path| Record::read(path).is_some_and(|record| record.backend == backend))
    }

    fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.root).map_err(|error| self.about(&error))
    }

    fn about(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot use {}: {error}", self.root.display()))
    }

    /// None for what this tool has not attached.
    fn file(&self, backend: &str, extension: &str) -> Option<PathBuf> {
        Some(self.root.join(format!("{}.{extension}", identifier::number(backend)?)))
    }

    fn legacy(&self, index: Index, extension: &str) -> PathBuf {
        self.root.join(format!("{}.{extension}", index.name()))
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
