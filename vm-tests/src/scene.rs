//! What surrounds a test: whether it can run here, the kernel it runs on, a place for disks, and its logs, which
//! are kept and named when it fails and deleted when it does not.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use crate::builder::Builder;
use crate::kernel::{Kernel, Series};
use crate::kit::Kit;
use crate::{host, paths};

const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A test's surroundings.
pub struct Scene {
    series: Series,
    kernel: Kernel,
    kits: Vec<Kit>,
    logs: PathBuf,
    scratch: TempDir,
    machines: Cell<u32>,
}

impl Scene {
    /// Runs a test unless something it needs is missing: then it says so and returns, or panics if
    /// `NBD_TESTS_STRICT` is 1. Panics if the test fails.
    pub fn play(name: &str, series: Series, kits: &[Kit], test: fn(&Scene) -> Result<()>) {
        if let Some(missing) = missing(series, kits) {
            let skip = format!("SKIP {name}: needs {missing}; run cargo xtask install");
            assert!(std::env::var("NBD_TESTS_STRICT").as_deref() != Ok("1"), "{skip}");
            // Written past the test runner, which shows what passing tests print to nobody.
            let _ = writeln!(std::io::stderr(), "{skip}");
            return;
        }
        let outcome = Scene::set(name, series, kits).and_then(|scene| {
            test(&scene)?;
            scene.clear()
        });
        if let Err(error) = outcome {
            panic!("{error:#}\nlogs are kept in {}", paths::logs().join(name).display());
        }
    }

    /// The surroundings of `name` on the newest kernel of a series, with `kits` for its guests.
    pub fn set(name: &str, series: Series, kits: &[Kit]) -> Result<Scene> {
        if let Some(missing) = missing(series, kits) {
            bail!("needs {missing}; run cargo xtask install");
        }
        let kernel = Kernel::find(series).context("the kernel vanished from the cache")?;
        let logs = paths::logs().join(name);
        if logs.exists() {
            fs::remove_dir_all(&logs)?;
        }
        fs::create_dir_all(&logs)?;
        let scratch = paths::cache().join("scratch");
        fs::create_dir_all(&scratch)?;
        forget_killed(&scratch);
        let scratch = tempfile::tempdir_in(scratch)?;
        Ok(Scene { series, kernel, kits: kits.to_vec(), logs, scratch, machines: Cell::new(0) })
    }

    /// A machine on this scene's kernel with its kits.
    pub fn vm(&self) -> Builder {
        self.machines.set(self.machines.get() + 1);
        let log = self.logs.join(format!("vm{}", self.machines.get()));
        Builder::new(self.kernel.clone(), self.kits.clone(), log)
    }

    /// Which kernels it is about.
    pub fn series(&self) -> Series {
        self.series
    }

    /// A new disk: a sparse file of `size` bytes, gone when the scene is.
    pub fn disk(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        let file = File::create_new(&path).with_context(|| format!("cannot create the disk {name}"))?;
        file.set_len(size)?;
        Ok(path)
    }

    /// A directory for what should be kept if the test fails, such as a host server's log.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// A directory that goes with the scene.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Deletes the logs, unless `NBD_VM_KEEP` is set: all went well.
    pub fn clear(&self) -> Result<()> {
        if std::env::var_os("NBD_VM_KEEP").is_some() {
            return Ok(());
        }
        fs::remove_dir_all(&self.logs)
            .map_err(|error| anyhow!("cannot delete {}: {error}", self.logs.display()))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs are kept in {}", self.logs.display());
        }
    }
}

/// Removes what tests that were killed could not; a day old, it is nobody's.
fn forget_killed(scratch: &Path) {
    let Ok(entries) = fs::read_dir(scratch) else { return };
    for entry in entries.flatten() {
        let age =
            entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > ABANDONED) {
            // Housekeeping: no test depends on it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The first thing that is not here.
fn missing(series: Series, kits: &[Kit]) -> Option<String> {
    let tools = ["qemu-system-x86_64", "busybox", "setpriv", "xz"];
    let tool = tools.into_iter().find(|name| host::program(name).is_none());
    let tool = tool.or_else(|| kits.iter().find_map(|kit| kit.missing()));
    tool.map(str::to_owned).or_else(|| Kernel::find(series).is_none().then(|| format!("a {series} kernel")))
}
