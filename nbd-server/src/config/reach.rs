//! What a server that runs by a plan must be able to reach.

use std::fs;
use std::path::{Path, PathBuf};

use super::open::{given_state_dir, path_of};
use super::{Access, Plan};
use crate::confine::Reach;

impl Plan {
    /// What is to be opened, now and, where the plan was read from a `file`, by later reloads: those may
    /// name other files, so that all of a directory counts from which something is served now.
    #[must_use]
    pub fn reach(&self, file: Option<&Path>) -> Reach {
        let globals = &self.globals;
        // Limits of block devices, the name of this boot, and who holds a lock.
        let mut reach = Reach {
            read: vec!["/sys".into(), "/proc/sys/kernel/random".into(), "/proc/locks".into()],
            write: globals.directories.clone(),
            keep: globals.state_dir.clone().or_else(given_state_dir).into_iter().collect(),
            sockets: globals.unix.iter().chain(&globals.admin).map(|path| directory(path)).collect(),
        };
        let whole = |path: &Path| if file.is_some() { directory(path) } else { path.to_owned() };
        for export in &self.exports {
            let Some(path) = path_of(&export.serve) else { continue };
            // A device is not replaced, and its directory has all others.
            let path = if is_regular(path) { whole(path) } else { path.to_owned() };
            // Changing an export from read-only to writable is for a reload too.
            match export.access {
                Access::ReadOnly if file.is_none() => reach.read.push(path),
                _ => reach.write.push(path),
            }
        }
        if let Some((files, _)) = &self.tls {
            let files = [Some(&files.cert), Some(&files.key), files.ca.as_ref(), files.crl.as_ref()];
            reach.read.extend(files.into_iter().flatten().map(|path| whole(path)));
        }
        // An editor puts a new file in the place of the old one.
        reach.read.extend(file.map(directory));
        reach
    }
}

/// The directory in which a file really is.
fn directory(path: &Path) -> PathBuf {
    let real =
        fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    real.parent().map_or(real.clone(), Path::to_owned)
}

fn is_regular(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_typed_is_reached_alone_and_one_that_was_written_with_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().canonicalize().unwrap().join("disk.img");
        fs::write(&image, "").unwrap();
        let text = |more: &str| format!("[[export]]\nserve = {image:?}\n{more}");
        let plan = Plan::parse(&text("")).unwrap();
        assert_eq!(plan.reach(None).write, [image.as_path()]);
        let reach = plan.reach(Some(Path::new("/etc/nbd/nbd.toml")));
        assert_eq!(reach.write, [image.parent().unwrap()]);
        assert!(reach.read.contains(&"/etc/nbd".into()));

        let plan = Plan::parse(&text("read-only = true\n")).unwrap();
        assert!(plan.reach(None).write.is_empty() && plan.reach(None).read.contains(&image));

        let text =
            format!("unix = [\"/run/nbd/a\"]\nadmin = \"/run/b\"\nstate-dir = \"/state\"\n{}", text(""));
        let reach = Plan::parse(&text).unwrap().reach(None);
        assert_eq!(reach.sockets, [Path::new("/run/nbd"), Path::new("/run")]);
        assert_eq!(reach.keep, [Path::new("/state")]);
        let text = "directories = [\"/srv\"]\n[[export]]\nserve = \"memory:1M\"\n";
        assert_eq!(Plan::parse(text).unwrap().reach(None).write, [Path::new("/srv")]);
    }
}
