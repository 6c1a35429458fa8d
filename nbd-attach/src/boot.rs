//! What systemd and udev ask of this tool, so that an entry of the [table](crate::tab) is attached at boot, has a
//! name that stays, is waited for by whoever mounts it, and is detached after everybody has unmounted it.

use crate::identifier;
use crate::sysfs::Sysfs;
use crate::tab::{self, TabError};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Where a template's instances come from.
const TEMPLATE: &str = "/usr/lib/systemd/system/nbd-attach@.service";
/// What starts them: whoever wants network file systems.
const TARGET: &str = "remote-fs.target.wants";

/// Partitions that may be mounted by the name of their device.
const PARTITIONS: u32 = 15;

/// Why there are no units.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The table cannot be used.
    #[error(transparent)]
    Tab(#[from] TabError),
    /// The directory cannot be written to.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes what the table asks for: a service per entry that is wanted at boot, and for the device of each what
/// brings it about, so that a line of `/etc/fstab` needs no more than the device's name. No table is an empty one.
///
/// # Errors
/// The table cannot be used, or the directory not be written to.
pub fn generate(into: &Path, table: &Path) -> Result<(), BootError> {
    let read = match tab::read(table) {
        Err(TabError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    for (_, fault) in &read.faults {
        tracing::error!("left out: {fault}");
    }
    for entry in read.entries {
        // An id needs no escaping here, and the unit reads it as it is.
        let service = format!("nbd-attach@{}.service", entry.name);
        if entry.auto {
            fs::create_dir_all(into.join(TARGET))?;
            symlink(TEMPLATE, into.join(TARGET).join(&service))?;
        }
        let text = format!(
            // No more than wanted: a device that is required to go before its service waits for itself.
            "# Made of {} by nbd-attach.\n[Unit]\nWants={service}\n",
            table.display()
        );
        let link = format!("dev-disk-by\\x2did-nbd\\x2d{}", escape(&entry.name.to_string()));
        let partitions = (1..=PARTITIONS).map(|number| format!("\\x2dpart{number}"));
        for part in std::iter::once(String::new()).chain(partitions) {
            let dependencies = into.join(format!("{link}{part}.device.d"));
            fs::create_dir_all(&dependencies)?;
            fs::write(dependencies.join("nbd-attach.conf"), &text)?;
        }
    }
    Ok(())
}

/// Escapes a part of a path for a unit's name, systemd.unit(5). Ids have no other signs that would need it.
fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

/// The properties of a device or of a partition of one, as udev reads them; none if this tool did not attach it.
#[must_use]
pub fn properties(sysfs: &Sysfs, name: &str) -> String {
    let whole = name.split_once('p').map_or(name, |(whole, _)| whole);
    let backend = whole.parse().ok().and_then(|index| sysfs.device(index).backend());
    let mut text = String::new();
    if let Some(told) = backend.as_deref().and_then(identifier::read) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "NBD_ATTACH_URI={}", told.uri);
        if let Some(id) = told.id {
            let _ = writeln!(text, "NBD_ATTACH_ID={id}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_become_units() {
        let dir = tempfile::tempdir().unwrap();
        let (tab, into) = (dir.path().join("tab"), dir.path().join("units"));
        generate(&into, &tab).unwrap();
        assert!(!into.exists(), "no table, no units");
        fs::write(&tab, "vm-1 nbd://h/x\nlater nbd://h/y noauto\n").unwrap();
        generate(&into, &tab).unwrap();
        let wanted: Vec<_> =
            fs::read_dir(into.join(TARGET)).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(wanted, ["nbd-attach@vm-1.service"]);
        let link = fs::read_link(into.join(TARGET).join(&wanted[0])).unwrap();
        assert_eq!(link, Path::new(TEMPLATE));
        let device = into.join("dev-disk-by\\x2did-nbd\\x2dlater.device.d/nbd-attach.conf");
        assert!(fs::read_to_string(device).unwrap().contains("Wants=nbd-attach@later.service\n"));
        fs::write(&tab, "nonsense\nfine nbd://h/\n").unwrap();
        let into = dir.path().join("others");
        generate(&into, &tab).unwrap();
        assert!(into.join(TARGET).join("nbd-attach@fine.service").symlink_metadata().is_ok());
    }

    #[test]
    fn udev_learns_the_id_of_a_device_and_its_partitions() {
        let dir = tempfile::tempdir().unwrap();
        let block = dir.path().join("block/nbd2");
        fs::create_dir_all(&block).unwrap();
        let sysfs = Sysfs::at(dir.path());
        assert_eq!(properties(&sysfs, "nbd2"), "");
        fs::write(block.join("backend"), "nbd://h/x#data#0123456789abcdef\n").unwrap();
        let told = "NBD_ATTACH_URI=nbd://h/x\nNBD_ATTACH_ID=data\n";
        assert_eq!([properties(&sysfs, "nbd2"), properties(&sysfs, "nbd2p1")], [told, told]);
        assert_eq!(properties(&sysfs, "sda"), "");
    }
}
