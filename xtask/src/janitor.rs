//! Cleans up after us even when we cannot: on Ctrl-C, on a kill, on a panic. A janitor is a small shell that reads
//! from a pipe only we hold; whichever way we end, the pipe closes and it does its work.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

/// A shell waiting for our end. Dropping it makes it work now and waits until it has.
pub(crate) struct Janitor {
    shell: Child,
}

/// The directory all our temporary files are in; it goes with us.
pub(crate) struct TemporaryFiles {
    directory: TempDir,
    _janitor: Janitor,
}

/// Reads until the pipe closes. A line in it means that there is nothing to do any more.
const WAIT: &str = "read -r _dismissed || {\n";

impl Janitor {
    /// Runs `script` when this is dropped or we are gone.
    pub(crate) fn watch(script: &str) -> Result<Janitor> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{WAIT}{script}\n}}")).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C goes to the terminal's foreground group, and this shell must outlive it.
        let shell = command.process_group(0).spawn().context("cannot start a shell")?;
        Ok(Janitor { shell })
    }

    /// Deletes `directory` and all that is in it when this is dropped or we are gone.
    pub(crate) fn of_directory(directory: &Path) -> Result<Janitor> {
        Janitor::watch(&format!("rm -rf {}", quoted(directory)))
    }

    /// Sends it home: all is clean, or what is there is to stay.
    pub(crate) fn dismiss(mut self) {
        if let Some(pipe) = &mut self.shell.stdin {
            // A shell that is gone needs no word.
            let _ = pipe.write_all(b"dismissed\n");
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // There is nobody left to tell.
        let _ = self.shell.wait();
    }
}

impl TemporaryFiles {
    /// Gives every temporary file of this process a place that is deleted however the process ends.
    pub(crate) fn gather() -> Result<TemporaryFiles> {
        let directory = tempfile::Builder::new().prefix("nbd-").tempdir()?;
        // apt reads its scratch lists as a user of its own.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let _janitor = Janitor::of_directory(directory.path())?;
        tempfile::env::override_temp_dir(directory.path())
            .map_err(|already| anyhow!("temporary files are in {} already", already.display()))?;
        Ok(TemporaryFiles { directory, _janitor })
    }

    /// Deletes them now, which is the time to say so if it cannot be done.
    pub(crate) fn delete(self) -> io::Result<()> {
        self.directory.close()
    }
}

/// A path as a word of the shell.
pub(crate) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_janitor_unless_it_is_dismissed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().join("it's here");
        fs::create_dir(&directory).expect("a directory");
        Janitor::of_directory(&directory).expect("a janitor").dismiss();
        assert!(directory.exists());
        drop(Janitor::of_directory(&directory).expect("a janitor"));
        assert!(!directory.exists());
    }
}
