//! Who may connect to a Unix socket: its permissions and its group.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::Context;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group};

/// Permissions of a socket with a group of its own, where none are given.
const GROUP_MODE: u32 = 0o660;

/// Permissions and group of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnixAccess {
    mode: Option<u32>,
    group: Option<Gid>,
}

impl UnixAccess {
    /// For the user alone.
    pub const PRIVATE: UnixAccess = UnixAccess { mode: Some(0o700), group: None };

    /// These permissions, and the group of that name.
    ///
    /// # Errors
    /// Where there is no such group.
    pub fn find(mode: Option<u32>, group: Option<&str>) -> anyhow::Result<UnixAccess> {
        let find = |name: &str| {
            Group::from_name(name)?.with_context(|| format!("there is no group {name:?}")).map(|it| it.gid)
        };
        let group = group.map(find).transpose()?;
        Ok(UnixAccess { mode: mode.or(group.map(|_| GROUP_MODE)), group })
    }

    /// Makes a socket at `path` by `bind`. Nobody can connect before it is as it shall be.
    ///
    /// # Errors
    /// Of `bind`, or where the group cannot be given.
    pub fn apply<T>(self, path: &Path, bind: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let UnixAccess { mode, group } = self;
        let Some(mode) = mode else { return bind() };
        let before = umask(Mode::all());
        let bound = bind();
        umask(before);
        let bound = bound?;
        let shown = path.display();
        if let Some(group) = group {
            chown(path, None, Some(group.as_raw())).with_context(|| {
                format!("cannot give {shown} to the group (--unix-group): only its members can")
            })?;
        }
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions)
            .with_context(|| format!("cannot set the mode of {shown}"))?;
        Ok(bound)
    }
}
