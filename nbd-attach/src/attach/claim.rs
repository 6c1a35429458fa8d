//! CONNECT, with the patience its passing refusals deserve.
//!
//! udev opens every new node for a moment, which makes the driver call it busy; a device being
//! destroyed calls itself invalid; two processes may create the same one. None of these is worth
//! an error message to a person.

use crate::device::Index;
use crate::host::Host;
use crate::netlink::client::{Connect, NetlinkError};
use crate::netlink::refusal::Refusal;
use crate::sysfs::Sysfs;
use nix::errno::Errno;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// CONNECT sends nothing to the server, so it is quick unless another device's server hangs and
/// holds the driver's lock.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// How long a passing refusal may last.
const RETRY_PATIENCE: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why no device was made.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The device asked for has an owner.
    #[error("{index} is attached already{}", by.as_ref().map(|by| format!(" (to {by})")).unwrap_or_default())]
    Taken {
        /// Which.
        index: Index,
        /// Its backend identifier, if it has one.
        by: Option<String>,
    },
    /// Anything else.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Attaches, trying again while the reason against it is a passing one.
pub async fn claim(host: &Host, wish: &Connect) -> Result<Index, ClaimError> {
    let until = Instant::now() + RETRY_PATIENCE;
    loop {
        let refusal = match host.netlink.connect(wish, CONNECT_PATIENCE).await {
            Err(NetlinkError::Refused(refusal)) => refusal,
            other => return Ok(other?),
        };
        match judge(&host.sysfs, &refusal) {
            Judgement::Taken(index) => {
                return Err(ClaimError::Taken { index, by: host.sysfs.device(index).backend() });
            }
            Judgement::Passing if Instant::now() < until => {
                tracing::debug!("{refusal}; trying again");
                sleep(RETRY_PAUSE).await;
            }
            Judgement::Passing | Judgement::Final => return Err(NetlinkError::Refused(refusal).into()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Passing,
    Taken(Index),
    Final,
}

fn judge(sysfs: &Sysfs, refusal: &Refusal) -> Judgement {
    match (refusal.errno, refusal.index) {
        (Errno::EBUSY, Some(index)) if sysfs.device(index).attached() => Judgement::Taken(index),
        (Errno::EBUSY | Errno::EEXIST, _) => Judgement::Passing,
        // Everything else the driver calls invalid was checked before asking.
        (Errno::EINVAL, Some(_)) => Judgement::Passing,
        _ => Judgement::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::Command;

    #[test]
    fn only_a_device_with_an_owner_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("block/nbd1")).unwrap();
        std::fs::write(dir.path().join("block/nbd1/pid"), "1\n").unwrap();
        let sysfs = Sysfs::at(dir.path());
        let judged = |index: Option<u32>, errno| {
            let index = index.map(|number| Index::new(number).unwrap());
            judge(&sysfs, &Refusal { command: Command::CONNECT, index, errno })
        };
        assert_eq!(judged(Some(1), Errno::EBUSY), Judgement::Taken(Index::new(1).unwrap()));
        assert_eq!(judged(Some(2), Errno::EBUSY), Judgement::Passing);
        assert_eq!(judged(Some(2), Errno::EINVAL), Judgement::Passing);
        assert_eq!(judged(None, Errno::EINVAL), Judgement::Final);
        assert_eq!(judged(None, Errno::EEXIST), Judgement::Passing);
        assert_eq!(judged(Some(2), Errno::EPERM), Judgement::Final);
    }
}
