//! Whether a server that is back still has what the device was made of.
//!
//! The kernel believes that what it wrote is there, and sends again only what was not answered. Another
//! export behind the same address, an older copy, or one that has lost acknowledged writes would become a
//! damaged file system; so whatever shows a difference keeps the connection from being used.

use crate::registry::told;
use common::handshake::Export;

/// What speaks against it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Difference {
    #[error("the export holds {now} bytes, and {before} before: the rest of the device is gone")]
    Smaller { before: u64, now: u64 },
    #[error("the server's flags are {now}, and {before} before")]
    Flags { before: String, now: String },
    #[error("the server's block sizes are not those of before")]
    BlockSizes,
    #[error(
        "the server has lost writes that it had acknowledged, or serves another copy (its epoch is {now}, and \
         {before} before)"
    )]
    Epoch { before: String, now: String },
}

/// Compares what the server says with what it said before, and with the size of the device. It may have grown.
pub(super) fn check(before: &Export, device_size: u64, now: &Export) -> Result<(), Difference> {
    if now.size < device_size {
        return Err(Difference::Smaller { before: device_size, now: now.size });
    }
    if now.flags != before.flags {
        let names = |export: &Export| export.flags.names().collect::<Vec<_>>().join(" ");
        return Err(Difference::Flags { before: names(before), now: names(now) });
    }
    if now.block_sizes != before.block_sizes {
        return Err(Difference::BlockSizes);
    }
    match (epoch(before), epoch(now)) {
        (Some(old), new) if new != Some(old) => {
            let now = new.unwrap_or("not told").to_owned();
            Err(Difference::Epoch { before: old.to_owned(), now })
        }
        // Other servers have none, and cannot be held to it.
        _ => Ok(()),
    }
}

/// The write verifier in the description: our server changes it exactly when acknowledged data may be lost.
fn epoch(export: &Export) -> Option<&str> {
    told(export.description.as_deref()?, "epoch")
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::handshake::BlockSizes;
    use common::proto::TransmissionFlags;

    fn export(description: Option<&str>) -> Export {
        Export {
            size: 4096,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
            block_sizes: Some(BlockSizes { minimum: 1, preferred: 4096, maximum_payload: 1 << 25 }),
            name: None,
            description: description.map(str::to_owned),
        }
    }

    #[test]
    fn the_same_and_a_larger_one_are_taken() {
        let before = export(Some("durability=writeback epoch=00ff; mine"));
        assert_eq!(check(&before, 4096, &before), Ok(()));
        let changed = Export { size: 8192, ..export(Some("durability=early-ack epoch=00ff; renamed")) };
        assert_eq!(check(&before, 4096, &changed), Ok(()));
        assert_eq!(check(&export(None), 4096, &export(Some("epoch=1"))), Ok(()));
    }

    #[test]
    fn each_difference_is_seen() {
        let before = export(Some("durability=writeback epoch=00ff"));
        let differs = |now: &Export| check(&before, 4096, now).unwrap_err().to_string();
        assert!(differs(&Export { size: 512, ..before.clone() }).contains("512 bytes, and 4096"));
        let flags = before.flags | TransmissionFlags::READ_ONLY;
        assert!(differs(&Export { flags, ..before.clone() }).contains("READ_ONLY"));
        assert!(differs(&Export { block_sizes: None, ..before.clone() }).contains("block sizes"));
        assert!(differs(&export(Some("epoch=0100"))).contains("0100, and 00ff"));
        assert!(differs(&export(None)).contains("not told"));
    }
}
