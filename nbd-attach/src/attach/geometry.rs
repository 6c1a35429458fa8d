//! What the device will look like: size, block size, flags and request size, decided from what
//! the server offers, what was asked for and what the driver can do.

use crate::config::{Access, AttachConfig, BLOCK_SIZE_MIN};
use common::handshake::Export;
use common::proto::{PAYLOAD_MAX, TransmissionFlags};

/// The shape of a device about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device: whole blocks.
    pub size: u64,
    /// Bytes at the end of the export that no block covers.
    pub tail: u64,
    /// Logical and physical block size.
    pub block_size: u32,
    /// What the driver is told about the server.
    pub flags: TransmissionFlags,
    /// Longest payload the server takes, in KiB, a multiple of the block size.
    pub payload_max_kb: u32,
}

/// Why an export cannot become a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Nothing in it.
    #[error("the export holds {size} bytes, less than one block of {block_size}")]
    Empty {
        /// What the server said.
        size: u64,
        /// One block.
        block_size: u32,
    },
    /// Beyond the kernel's file offsets.
    #[error("the server claims an export of {0} bytes, more than the kernel can address")]
    TooBig(u64),
    /// The driver cannot make blocks larger than a page.
    #[error(
        "the server's minimum block size is {minimum}, but the kernel's driver ends at {page_size}, a page"
    )]
    MinimumAbovePage {
        /// The server's.
        minimum: u32,
        /// The kernel's.
        page_size: u32,
    },
    /// `--block-size` contradicts the server.
    #[error("--block-size {typed} is below the server's minimum block size of {minimum}")]
    BelowMinimum {
        /// What was typed.
        typed: u32,
        /// What the server said.
        minimum: u32,
    },
    /// The driver sends at least a page at once.
    #[error("the server takes {payload} bytes at once, but the kernel's driver may send {page_size}, a page")]
    PayloadBelowPage {
        /// The server's.
        payload: u32,
        /// The kernel's.
        page_size: u32,
    },
    /// More than one connection where the server allows one.
    #[error("the server does not allow several connections to this export: use --connections 1")]
    SingleConnection,
}

impl Geometry {
    /// Decides, given what the server said.
    ///
    /// # Errors
    /// The driver can make no such device, or not the one that was asked for.
    pub fn decide(wish: &AttachConfig, export: &Export, page_size: u32) -> Result<Geometry, GeometryError> {
        let block_size = block_size(wish, export, page_size)?;
        let tail = export.size % u64::from(block_size);
        let size = export.size - tail;
        if size == 0 {
            return Err(GeometryError::Empty { size: export.size, block_size });
        }
        if i64::try_from(size).is_err() {
            return Err(GeometryError::TooBig(size));
        }
        Ok(Geometry {
            size,
            tail,
            block_size,
            flags: flags(wish, export),
            payload_max_kb: payload_max_kb(export, block_size, page_size)?,
        })
    }
}

fn block_size(wish: &AttachConfig, export: &Export, page_size: u32) -> Result<u32, GeometryError> {
    let minimum = export.block_sizes.map_or(1, |sizes| sizes.minimum);
    if minimum > page_size {
        return Err(GeometryError::MinimumAbovePage { minimum, page_size });
    }
    match wish.block_size {
        Some(typed) if typed < minimum => Err(GeometryError::BelowMinimum { typed, minimum }),
        Some(typed) => Ok(typed),
        None => Ok(minimum.max(BLOCK_SIZE_MIN)),
    }
}

fn flags(wish: &AttachConfig, export: &Export) -> TransmissionFlags {
    let known = TransmissionFlags(export.flags.0 & known_to_driver().0) | TransmissionFlags::HAS_FLAGS;
    match wish.access {
        Access::AsOffered => known,
        Access::ReadOnly => known | TransmissionFlags::READ_ONLY,
    }
}

/// The transmission flags that mean something to the driver; it is told no others.
fn known_to_driver() -> TransmissionFlags {
    TransmissionFlags::READ_ONLY
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::ROTATIONAL
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::CAN_MULTI_CONN
}

fn payload_max_kb(export: &Export, block_size: u32, page_size: u32) -> Result<u32, GeometryError> {
    let payload = export.block_sizes.map_or(PAYLOAD_MAX, |sizes| sizes.maximum_payload);
    let usable = payload - payload % block_size.max(1024);
    if usable < page_size {
        return Err(GeometryError::PayloadBelowPage { payload, page_size });
    }
    Ok(usable / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use clap::Parser;
    use common::handshake::BlockSizes;
    use proptest::prelude::*;

    const PAGE: u32 = 4096;

    fn wish(arguments: &[&str]) -> AttachConfig {
        let words = ["nbd-attach", "attach", "nbd://h"].iter().chain(arguments);
        let cli::Command::Attach(typed) = cli::Cli::parse_from(words).command else { panic!("attach") };
        AttachConfig::new(&typed, PAGE).unwrap()
    }

    fn export(size: u64, flags: TransmissionFlags, sizes: Option<(u32, u32, u32)>) -> Export {
        let block_sizes = sizes.map(|(minimum, preferred, maximum_payload)| BlockSizes {
            minimum,
            preferred,
            maximum_payload,
        });
        Export { size, flags, block_sizes, name: None, description: None }
    }

    const MULTI: TransmissionFlags = TransmissionFlags::CAN_MULTI_CONN;

    #[test]
    fn without_constraints() {
        let geometry = Geometry::decide(&wish(&[]), &export(1 << 20, MULTI, None), PAGE).unwrap();
        assert_eq!((geometry.size, geometry.tail, geometry.block_size), (1 << 20, 0, 512));
        assert_eq!(geometry.payload_max_kb, 32 << 10);
        assert_eq!(geometry.flags, MULTI | TransmissionFlags::HAS_FLAGS);
    }

    #[test]
    fn a_larger_minimum_becomes_the_block_size_and_the_tail_is_cut() {
        let told = export(1_000_001, MULTI, Some((4096, 4096, 70_000)));
        let geometry = Geometry::decide(&wish(&["--read-only"]), &told, PAGE).unwrap();
        assert_eq!((geometry.block_size, geometry.size, geometry.tail), (4096, 999_424, 577));
        assert_eq!(geometry.payload_max_kb, 68);
        assert!(geometry.flags.contains(TransmissionFlags::READ_ONLY));
    }

    #[test]
    fn what_the_driver_cannot_do_is_refused() {
        let refused = |arguments: &[&str], size, sizes| {
            let told = export(size, MULTI, sizes);
            Geometry::decide(&wish(arguments), &told, PAGE).unwrap_err().to_string()
        };
        for (error, part) in [
            (refused(&[], 0, None), "less than one block"),
            (refused(&[], u64::MAX, None), "more than the kernel can address"),
            (refused(&[], 1 << 20, Some((8192, 8192, 65536))), "minimum block size is 8192"),
            (refused(&[], 1 << 20, Some((1, 512, 2048))), "takes 2048 bytes at once"),
            (
                refused(&["--block-size", "512"], 1 << 20, Some((4096, 4096, 65536))),
                "below the server's minimum",
            ),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_server_says_the_device_fits_inside(
            size in any::<u64>(), flags in any::<u16>(),
            sizes in prop::option::of((0u32..17, 9u32..32, any::<u32>())),
        ) {
            let sizes = sizes.map(|(min, pref, max)| (1 << min, 1 << pref, max)).filter(|s| s.2 >= s.1);
            let told = export(size, TransmissionFlags(flags), sizes);
            if let Ok(made) = Geometry::decide(&wish(&[]), &told, PAGE) {
                prop_assert_eq!(made.size + made.tail, size);
                prop_assert!(made.size > 0 && made.size % u64::from(made.block_size) == 0);
                let payload = sizes.map_or(PAYLOAD_MAX, |s| s.2);
                prop_assert!(u64::from(made.payload_max_kb) * 1024 <= u64::from(payload));
                prop_assert!(sizes.is_none_or(|s| s.0 <= made.block_size));
                prop_assert!((512..=PAGE).contains(&made.block_size));
            }
        }
    }
}
