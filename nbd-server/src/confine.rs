//! The server's hold on itself: what a peer that has found a fault could still not do, and who may connect.
//!
//! | step | when | by |
//! |---|---|---|
//! | another user | once the sockets listen | [`User::become_it`] |
//! | files | then, before any thread begins | [`files`]: landlock(7); only what is served can be opened, and TCP goes nowhere |
//! | system calls | once exports are open and all threads live | [`calls`]: seccomp(2); no program is run, nothing is traced or mounted |
//!
//! Where the kernel cannot, the server goes without and says so in its log, unless it was told that it
//! must not.

mod calls;
mod files;
mod unix_access;
mod user;

use std::path::{Path, PathBuf};

use anyhow::Context;

pub use unix_access::UnixAccess;
pub use user::User;

/// Whether the server shall confine itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// As far as the kernel can
    #[default]
    Auto,
    /// Or not serve
    Required,
    /// Not at all
    Off,
}

/// What the server must be able to reach once it is confined. What does not exist is left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Files to read, or directories with all that is below them.
    pub read: Vec<PathBuf>,
    /// Files and devices to read and write, or directories with all that is below them.
    pub write: Vec<PathBuf>,
    /// Directories in which files are made, replaced and removed.
    pub keep: Vec<PathBuf>,
    /// Directories from which sockets are removed.
    pub sockets: Vec<PathBuf>,
}

impl Reach {
    /// Whether a file can be opened for writing, or a device.
    #[must_use]
    pub fn covers(&self, path: &Path) -> bool {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.write.iter().any(|allowed| real.starts_with(allowed.canonicalize().as_ref().unwrap_or(allowed)))
    }
}

/// What came of it, for the log.
#[derive(Debug, Default)]
pub struct Confined(Vec<String>);

impl Confined {
    /// Tells people.
    pub fn log(&self) {
        tracing::info!("confined: {}", self.0.join("; "));
    }
}

/// Confines this thread, and those it will begin, to some files.
///
/// # Errors
/// Where it is required and the kernel cannot.
pub fn files(sandbox: Sandbox, reach: &Reach) -> anyhow::Result<Confined> {
    // Later there may be no right to make them.
    for dir in &reach.keep {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut confined = Confined::default();
    confined.settle(sandbox, "files and TCP", || files::confine(reach))?;
    Ok(confined)
}

impl Confined {
    /// Confines every thread of the process to the system calls of a server that serves.
    ///
    /// # Errors
    /// Where it is required and the kernel cannot.
    pub fn calls(&mut self, sandbox: Sandbox) -> anyhow::Result<()> {
        self.settle(sandbox, "system calls", calls::confine)
    }

    fn settle(
        &mut self,
        sandbox: Sandbox,
        what: &str,
        confine: impl FnOnce() -> anyhow::Result<&'static str>,
    ) -> anyhow::Result<()> {
        let how = match sandbox {
            Sandbox::Off => "not wanted".to_owned(),
            Sandbox::Required => {
                confine().context(format!("cannot confine {what} (--sandbox required)"))?.to_owned()
            }
            Sandbox::Auto => match confine() {
                Ok(how) => how.to_owned(),
                Err(error) => format!("not possible, {error:#}"),
            },
        };
        self.0.push(format!("{what}: {how}"));
        Ok(())
    }
}
