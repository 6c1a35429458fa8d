//! What the kernel shows of its nbd devices under `/sys/block`.
//!
//! The root is a parameter so that tests can lay out a tree of their own. `pid` and `backend`
//! exist exactly while a device is attached; `pid` is the thread that attached it, usually gone.

use crate::device::Index;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A sysfs tree.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The running kernel's.
    pub fn system() -> Sysfs {
        Sysfs::at("/sys")
    }

    /// A tree elsewhere.
    pub fn at(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs { root: root.into() }
    }

    /// Whether the nbd driver is built in or loaded, and done with its start.
    pub fn has_driver(&self) -> bool {
        let module = self.root.join("module/nbd");
        let state = fs::read_to_string(module.join("initstate"));
        module.exists() && state.map_or(true, |state| state.trim() == "live")
    }

    /// Every nbd device there is, attached or not, in order.
    pub fn devices(&self) -> io::Result<Vec<DeviceDir>> {
        let entries = match fs::read_dir(self.root.join("block")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("nbd")) else { continue };
            if let Ok(index) = name.parse() {
                found.push(index);
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|index| self.device(index)).collect())
    }

    /// One device's directory, whether it exists or not.
    pub fn device(&self, index: Index) -> DeviceDir {
        DeviceDir { index, path: self.root.join("block").join(index.name()) }
    }

    /// The attached device that bears this backend identifier.
    pub fn find_backend(&self, backend: &str) -> io::Result<Option<DeviceDir>> {
        Ok(self.devices()?.into_iter().find(|device| device.backend().as_deref() == Some(backend)))
    }
}

/// `/sys/block/nbdN`.
#[derive(Clone, Debug)]
pub struct DeviceDir {
    /// Which device.
    pub index: Index,
    path: PathBuf,
}

/// A device number, as sysfs and mountinfo write it: `43:0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u64,
    /// The device.
    pub minor: u64,
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<DeviceNumber, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(DeviceNumber { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The disk or one of its partitions: its name and number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `nbd0` or `nbd0p1`.
    pub name: String,
    /// Its device number.
    pub number: DeviceNumber,
}

impl DeviceDir {
    /// Whether the kernel has such a device at all.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Whether a server is attached to it (dead or alive). A mere open of the node does not count.
    pub fn attached(&self) -> bool {
        self.path.join("pid").exists()
    }

    /// The identifier given at attach time; none when not attached, or attached without one.
    pub fn backend(&self) -> Option<String> {
        self.read("backend").ok()
    }

    /// The size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        let sectors: u64 = self.number("size")?;
        Ok(sectors.saturating_mul(512))
    }

    /// An attribute that is a number, such as `queue/logical_block_size`.
    pub fn number<N: FromStr>(&self, attribute: &str) -> io::Result<N> {
        let text = self.read(attribute)?;
        text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{attribute}: {text:?}")))
    }

    /// Requests in flight: reads and writes.
    pub fn inflight(&self) -> io::Result<[u64; 2]> {
        let text = self.read("inflight")?;
        let mut counts = text.split_whitespace().map(|count| count.parse().unwrap_or(0));
        Ok([counts.next().unwrap_or(0), counts.next().unwrap_or(0)])
    }

    /// What was read and what was written since the device was made: requests and bytes.
    pub fn transferred(&self) -> io::Result<[(u64, u64); 2]> {
        let text = self.read("stat")?;
        // `Documentation/block/stat.rst` in the kernel's source.
        let counts: Vec<u64> = text.split_whitespace().map(|count| count.parse().unwrap_or(0)).collect();
        let at = |place: usize| counts.get(place).copied().unwrap_or(0);
        Ok([(at(0), at(2).saturating_mul(512)), (at(4), at(6).saturating_mul(512))])
    }

    /// Changes an attribute.
    pub fn write(&self, attribute: &str, value: impl fmt::Display) -> io::Result<()> {
        fs::write(self.path.join(attribute), value.to_string())
    }

    /// Has udev look at the device again: the driver announces a change before it shows the identifier, and before it
    /// hides it.
    pub fn announce(&self) {
        if let Err(error) = self.write("uevent", "change") {
            tracing::debug!("{}: udev is not told: {error}", self.index);
        }
    }

    /// The device number of the whole disk.
    pub fn device_number(&self) -> io::Result<DeviceNumber> {
        number_of(&self.path)
    }

    /// The disk itself and its partitions.
    pub fn parts(&self) -> io::Result<Vec<Part>> {
        let name = self.index.name();
        let mut parts = vec![Part { number: number_of(&self.path)?, name: name.clone() }];
        for path in self.partition_dirs()? {
            if let (Some(name), Ok(number)) = (file_name(&path), number_of(&path)) {
                parts.push(Part { name, number });
            }
        }
        parts.sort_by_key(|part| part.number.minor);
        Ok(parts)
    }

    /// Links to the block devices built on top of the disk or its partitions.
    pub fn holder_links(&self) -> io::Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for path in std::iter::once(self.path.clone()).chain(self.partition_dirs()?) {
            let Ok(entries) = fs::read_dir(path.join("holders")) else { continue };
            links.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
        Ok(links)
    }

    /// Block devices built on top of the disk or its partitions, such as `dm-0`.
    pub fn holders(&self) -> io::Result<Vec<String>> {
        let mut holders: Vec<String> =
            self.holder_links()?.iter().filter_map(|path| file_name(path)).collect();
        holders.sort();
        holders.dedup();
        Ok(holders)
    }

    fn partition_dirs(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.path)?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(paths.filter(|path| path.join("partition").exists()).collect())
    }

    fn read(&self, attribute: &str) -> io::Result<String> {
        let text = fs::read(self.path.join(attribute))?;
        Ok(String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned())
    }
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

fn number_of(directory: &Path) -> io::Result<DeviceNumber> {
    let text = fs::read_to_string(directory.join("dev"))?;
    let invalid = |()| io::Error::new(io::ErrorKind::InvalidData, format!("dev: {text:?}"));
    text.trim().parse().map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sysfs = Sysfs::at(dir.path());
        (dir, sysfs)
    }

    #[test]
    fn an_attached_device_is_told_from_an_idle_one() {
        let (_dir, sysfs) = tree(&[
            ("block/nbd0/size", "0\n"),
            ("block/nbd10/pid", "812\n"),
            ("block/nbd10/backend", "nbd://host/#1\n"),
            ("block/nbd10/size", "2048\n"),
            ("block/nbd10/inflight", "       3        4\n"),
            ("block/nbd2/size", "0\n"),
            ("block/sda/size", "8\n"),
            ("module/nbd/parameters/nbds_max", "16\n"),
        ]);
        let devices = sysfs.devices().unwrap();
        let names: Vec<_> = devices.iter().map(|device| device.index.name()).collect();
        assert_eq!(names, ["nbd0", "nbd2", "nbd10"]);
        assert!(!devices[0].attached() && devices[0].backend().is_none());
        assert!(devices[2].attached() && sysfs.has_driver());
        assert_eq!(devices[2].size().unwrap(), 1 << 20);
        assert_eq!(devices[2].inflight().unwrap(), [3, 4]);
        let found = sysfs.find_backend("nbd://host/#1").unwrap().unwrap();
        assert_eq!(found.index, devices[2].index);
        assert!(sysfs.find_backend("nbd://host/#2").unwrap().is_none());
    }

    #[test]
    fn partitions_and_holders_are_found() {
        let (_dir, sysfs) = tree(&[
            ("block/nbd1/dev", "43:32\n"),
            ("block/nbd1/nbd1p2/dev", "43:34\n"),
            ("block/nbd1/nbd1p2/partition", "2\n"),
            ("block/nbd1/nbd1p2/holders/dm-0", ""),
            ("block/nbd1/nbd1p1/dev", "43:33\n"),
            ("block/nbd1/nbd1p1/partition", "1\n"),
            ("block/nbd1/queue/max_sectors_kb", "128\n"),
        ]);
        let device = sysfs.device(Index::new(1).unwrap());
        let parts: Vec<_> = device.parts().unwrap().into_iter().map(|p| (p.name, p.number.minor)).collect();
        assert_eq!(parts, [("nbd1".to_owned(), 32), ("nbd1p1".to_owned(), 33), ("nbd1p2".to_owned(), 34)]);
        assert_eq!(device.holders().unwrap(), ["dm-0"]);
        device.write("queue/max_sectors_kb", 64).unwrap();
        assert_eq!(device.number::<u32>("queue/max_sectors_kb").unwrap(), 64);
    }

    #[test]
    fn no_driver_is_no_devices() {
        let (_dir, sysfs) = tree(&[]);
        assert!(sysfs.devices().unwrap().is_empty() && !sysfs.has_driver());
        assert!(!sysfs.device(Index::new(0).unwrap()).exists());
    }
}
