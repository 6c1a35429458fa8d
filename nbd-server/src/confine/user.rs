//! Another user for a server that root has started.

use std::ffi::CString;

use anyhow::{Context, ensure};
use nix::unistd::{self, Gid, Group, Uid};

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl User {
    /// Looks up `NAME` or `NAME:GROUP`.
    ///
    /// # Errors
    /// Where there is no such user or group.
    pub fn find(text: &str) -> anyhow::Result<User> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        let user = unistd::User::from_name(name)?.with_context(|| format!("there is no user {name:?}"))?;
        let gid = match group {
            Some(group) => {
                let found = Group::from_name(group)?;
                found.with_context(|| format!("there is no group {group:?}"))?.gid
            }
            None => user.gid,
        };
        Ok(User { name: name.to_owned(), uid: user.uid, gid })
    }

    /// Makes every thread of the process this user's, with this user's groups, for good.
    ///
    /// # Errors
    /// Where the process is neither root's nor this user's already.
    pub fn become_it(&self) -> anyhow::Result<()> {
        if unistd::getuid() == self.uid && unistd::geteuid() == self.uid && unistd::getegid() == self.gid {
            return Ok(());
        }
        let name = CString::new(self.name.as_str()).context("the name of a user")?;
        let become_it = || {
            unistd::initgroups(&name, self.gid)?;
            unistd::setresgid(self.gid, self.gid, self.gid)?;
            unistd::setresuid(self.uid, self.uid, self.uid)
        };
        become_it().with_context(|| format!("cannot become user {:?}: only root can", self.name))?;
        ensure!(
            self.uid.is_root() || unistd::setuid(Uid::from_raw(0)).is_err(),
            "still able to become root again"
        );
        tracing::info!(user = self.name, uid = self.uid.as_raw(), gid = self.gid.as_raw(), "serving as");
        Ok(())
    }
}
