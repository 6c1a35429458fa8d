//! Before the driver is asked for anything: is it there, and may we?

use crate::bounded::bounded;
use crate::sysfs::Sysfs;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Loading a module takes milliseconds, but modprobe may wait for its own lock.
const LOAD_PATIENCE: Duration = Duration::from_secs(30);
/// For the module's own start.
const START_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// `CAP_SYS_ADMIN` in `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
/// `MODULE_INIT_COMPRESSED_FILE` in `include/uapi/linux/module.h`, since Linux 5.17.
const COMPRESSED_FILE: u32 = 4;

/// Why the driver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Not root.
    #[error("this needs root (CAP_SYS_ADMIN): run it with sudo")]
    Unprivileged,
    /// No module.
    #[error(
        "the kernel's nbd module is not loaded and could not be loaded: {0}; load it with `modprobe nbd` \
         (in a container: on the host). Some cloud and minimal kernels keep it in an extra package, \
         such as linux-modules-extra"
    )]
    Missing(String),
}

/// Whether this process may attach and detach.
pub fn check_privilege() -> Result<(), DriverError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Without /proc nothing can be told from here; the kernel will say no itself.
    if has_capability(&status, CAP_SYS_ADMIN).unwrap_or(true) {
        Ok(())
    } else {
        Err(DriverError::Unprivileged)
    }
}

fn has_capability(status: &str, capability: u32) -> Option<bool> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(effective >> capability & 1 == 1)
}

/// Loads the nbd module unless it is there.
pub async fn ensure_loaded(sysfs: &Sysfs) -> Result<(), DriverError> {
    if sysfs.has_driver() {
        return Ok(());
    }
    tracing::debug!("loading the nbd module");
    let loaded = bounded(LOAD_PATIENCE, load).await;
    loaded.unwrap_or_else(|slow| Err(format!("modprobe gave {slow}"))).map_err(DriverError::Missing)?;
    // Somebody else may have begun to load it, for whom modprobe does not wait.
    let until = Instant::now() + START_PATIENCE;
    while !sysfs.has_driver() {
        if Instant::now() > until {
            let missing = "modprobe succeeded, yet there is no /sys/module/nbd";
            return Err(DriverError::Missing(missing.into()));
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn load() -> Result<(), String> {
    // Root's PATH often lacks the sbin directories.
    for program in ["modprobe", "/sbin/modprobe", "/usr/sbin/modprobe"] {
        match Command::new(program).arg("nbd").output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
    load_directly().map_err(|error| format!("there is no modprobe, and {error}"))
}

/// The kernel's release, as uname(2) has it; nothing if it does not say.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned())
}

/// For systems without modprobe. The module depends on no other.
fn load_directly() -> Result<(), String> {
    let release = release();
    let directory = PathBuf::from("/lib/modules").join(&release).join("kernel/drivers/block");
    for name in ["nbd.ko", "nbd.ko.xz", "nbd.ko.zst", "nbd.ko.gz"] {
        let path = directory.join(name);
        let Ok(file) = File::open(&path) else { continue };
        let compressed = if name == "nbd.ko" { 0 } else { COMPRESSED_FILE };
        let flags = ModuleInitFlags::from_bits_retain(compressed);
        return finit_module(&file, c"", flags)
            .map_err(|errno| format!("{}: {}", path.display(), errno.desc()));
    }
    Err(format!("no nbd.ko for this kernel in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let root = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        let user = "CapEff:\t0000000000000000\n";
        assert_eq!(has_capability(root, CAP_SYS_ADMIN), Some(true));
        assert_eq!(has_capability(user, CAP_SYS_ADMIN), Some(false));
        assert_eq!(has_capability("", CAP_SYS_ADMIN), None);
    }

    #[tokio::test]
    async fn a_loaded_driver_is_not_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("module/nbd")).unwrap();
        ensure_loaded(&Sysfs::at(dir.path())).await.unwrap();
    }

    #[test]
    fn a_missing_module_says_what_to_do() {
        let text = DriverError::Missing("no such file".into()).to_string();
        assert!(text.contains("modprobe nbd") && text.contains("linux-modules-extra"), "{text}");
    }
}
