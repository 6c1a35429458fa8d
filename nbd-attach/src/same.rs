//! Whether a connection leads to what the device was made of. Every connection that joins a device is asked here: one of
//! several at attach, a new one for a dead one, one for a device that somebody else left.
//!
//! The kernel believes that what it wrote is there, and sends again only what was not answered. Another export behind the
//! same address, an older copy, or one that has lost acknowledged writes would become a damaged file system; so whatever
//! shows a difference keeps the connection from being used.

use crate::registry::word;
use common::handshake::Export;

/// The metadata context by which a server tells its epoch, which it changes exactly when acknowledged writes may be lost.
const EPOCH_CONTEXT: &str = "x-nbd-durability:epoch=";

/// What a server said on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Of the export.
    pub export: Export,
    /// Its epoch, if it has one.
    pub epoch: Option<String>,
    /// What lies on it, of servers without an epoch and while it is in use.
    pub identity: Option<String>,
}

/// What speaks against a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// A part of the device would be missing.
    #[error("the export holds {now} bytes, and {before} before: the rest of the device is gone")]
    Smaller {
        /// Bytes of the device.
        before: u64,
        /// Bytes of the export now.
        now: u64,
    },
    /// What the driver was told is not true any more.
    #[error("the server's flags are {now}, and {before} before")]
    Flags {
        /// By the spec's names.
        before: String,
        /// Likewise.
        now: String,
    },
    /// Likewise.
    #[error("the server's block sizes are not those of before")]
    BlockSizes,
    /// What was written may not be there.
    #[error(
        "the server has lost writes that it had acknowledged, or serves another copy (its epoch is {now}, and \
         {before} before)"
    )]
    Epoch {
        /// As it was.
        before: String,
        /// As it is.
        now: String,
    },
    /// It is another disk.
    #[error("the server serves another disk (it holds {now}, and {before} before)")]
    Identity {
        /// As it was.
        before: String,
        /// As it is.
        now: String,
    },
}

/// Compares what a server says with what it said before, and with the size of the device. It may have grown.
///
/// # Errors
/// What differs.
pub fn check(before: &Told, device_size: u64, now: &Told) -> Result<(), Difference> {
    if now.export.size < device_size {
        return Err(Difference::Smaller { before: device_size, now: now.export.size });
    }
    if now.export.flags != before.export.flags {
        let names = |told: &Told| told.export.flags.names().collect::<Vec<_>>().join(" ");
        return Err(Difference::Flags { before: names(before), now: names(now) });
    }
    if now.export.block_sizes != before.export.block_sizes {
        return Err(Difference::BlockSizes);
    }
    if let Some(before) = before.identity.as_ref().filter(|before| now.identity.as_ref() != Some(before)) {
        let now = now.identity.clone().unwrap_or_else(|| "nothing known".to_owned());
        return Err(Difference::Identity { before: before.clone(), now });
    }
    match &before.epoch {
        Some(old) if now.epoch.as_ref() != Some(old) => {
            let now = now.epoch.clone().unwrap_or_else(|| "not told".to_owned());
            Err(Difference::Epoch { before: old.clone(), now })
        }
        // Other servers have none, and cannot be held to it.
        _ => Ok(()),
    }
}

/// The epoch among the contexts that a server has.
#[must_use]
pub fn epoch_of(contexts: &[String]) -> Option<String> {
    contexts.iter().find_map(|name| name.strip_prefix(EPOCH_CONTEXT)).map(str::to_owned)
}

/// What the description says of an epoch. It is text for people; only that it may be worth asking is learnt from it.
#[must_use]
pub fn hinted_epoch(export: &Export) -> Option<String> {
    word(export.description.as_deref()?, "epoch").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::handshake::BlockSizes;
    use common::proto::TransmissionFlags;

    fn told(epoch: Option<&str>) -> Told {
        let export = Export {
            size: 4096,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
            block_sizes: Some(BlockSizes { minimum: 1, preferred: 4096, maximum_payload: 1 << 25 }),
            name: None,
            description: Some("epoch=told to people".to_owned()),
        };
        Told { export, epoch: epoch.map(str::to_owned), identity: None }
    }

    fn with(told: &Told, change: impl FnOnce(&mut Export)) -> Told {
        let mut changed = told.clone();
        change(&mut changed.export);
        changed
    }

    #[test]
    fn the_same_and_a_larger_one_are_taken() {
        let before = told(Some("00ff"));
        assert_eq!(check(&before, 4096, &before), Ok(()));
        let grown =
            with(&before, |export| (export.size, export.description) = (8192, Some("renamed".into())));
        assert_eq!(check(&before, 4096, &grown), Ok(()));
        assert_eq!(check(&told(None), 4096, &told(Some("1"))), Ok(()));
    }

    #[test]
    fn each_difference_is_seen() {
        let before = told(Some("00ff"));
        let differs = |now: &Told| check(&before, 4096, now).unwrap_err().to_string();
        assert!(differs(&with(&before, |export| export.size = 512)).contains("512 bytes, and 4096"));
        let read_only = with(&before, |export| export.flags |= TransmissionFlags::READ_ONLY);
        assert!(differs(&read_only).contains("READ_ONLY"));
        assert!(differs(&with(&before, |export| export.block_sizes = None)).contains("block sizes"));
        assert!(differs(&told(Some("0100"))).contains("0100, and 00ff"));
        assert!(differs(&told(None)).contains("not told"));
        let held = |identity: Option<&str>| Told { identity: identity.map(str::to_owned), ..told(None) };
        let error = check(&held(Some("ext aa")), 4096, &held(Some("ext bb"))).unwrap_err().to_string();
        assert!(error.contains("holds ext bb, and ext aa before"), "{error}");
        assert!(check(&held(Some("ext aa")), 4096, &held(None)).is_err());
        assert_eq!(check(&held(None), 4096, &held(Some("ext bb"))), Ok(()), "nobody knew");
    }

    #[test]
    fn the_epoch_is_a_context_and_not_a_word() {
        let contexts = ["base:allocation".to_owned(), "x-nbd-durability:epoch=00ff".to_owned()];
        assert_eq!(epoch_of(&contexts).as_deref(), Some("00ff"));
        assert_eq!(epoch_of(&contexts[..1]), None);
        assert_eq!(hinted_epoch(&told(None).export).as_deref(), Some("told"));
    }
}
