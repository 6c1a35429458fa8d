//! Which nbd device is meant: the driver's index, and the names people and the kernel give it.
//!
//! A user may type `/dev/nbd3`, `nbd3` or a symbolic link to it; inside the crate there is only
//! the [`Index`].

use crate::identifier::{Id, IdError};
use common::uri::{Uri, UriError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The number of an nbd device: the N of `/dev/nbdN` and of the netlink attribute INDEX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(u32);

impl Index {
    /// The highest index the driver can have: 20 minor bits shared with 31 partitions each.
    pub const MAX: u32 = (1 << 15) - 1;

    /// The index, when the driver could have a device of that number.
    pub fn new(number: u32) -> Result<Index, DeviceNameError> {
        if number > Index::MAX { Err(DeviceNameError::TooHigh(number)) } else { Ok(Index(number)) }
    }

    /// The bare number, as netlink wants it.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The kernel's name of the disk: `nbd3`.
    pub fn name(self) -> String {
        format!("nbd{}", self.0)
    }

    /// The device node: `/dev/nbd3`.
    pub fn node(self) -> PathBuf {
        PathBuf::from(format!("/dev/nbd{}", self.0))
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

impl FromStr for Index {
    type Err = DeviceNameError;

    fn from_str(typed: &str) -> Result<Index, DeviceNameError> {
        match parse(typed) {
            Err(DeviceNameError::NotNbd(_)) => match std::fs::canonicalize(typed) {
                Ok(target) if target != Path::new(typed) => parse(&target.to_string_lossy()),
                _ => parse(typed),
            },
            known => known,
        }
    }
}

/// What a person may call an attached device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// By the kernel's name.
    Device(Index),
    /// By the id it was attached by.
    Id(Id),
    /// By what was attached.
    Uri(Box<Uri>),
}

impl FromStr for Named {
    type Err = DeviceNameError;

    fn from_str(typed: &str) -> Result<Named, DeviceNameError> {
        match typed.parse() {
            Err(DeviceNameError::NotNbd(_)) if typed.contains("://") => typed
                .parse()
                .map(|uri| Named::Uri(Box::new(uri)))
                .map_err(|_: UriError| DeviceNameError::NotNbd(typed.to_owned())),
            Err(DeviceNameError::NotNbd(_)) if !typed.contains('/') => typed
                .parse()
                .map(Named::Id)
                .map_err(|IdError { .. }| DeviceNameError::NotNbd(typed.to_owned())),
            index => index.map(Named::Device),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Named::Device(index) => index.fmt(f),
            Named::Id(id) => id.fmt(f),
            Named::Uri(uri) => uri.fmt(f),
        }
    }
}

/// Why a text does not name an nbd device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceNameError {
    /// Something else altogether.
    #[error("{0:?} is not an nbd device: say /dev/nbdN, or the id or the URI it was attached by")]
    NotNbd(String),
    /// A partition was named.
    #[error("{partition} is a partition: name the whole device, {whole}")]
    Partition {
        /// What was typed.
        partition: String,
        /// The disk it lies on.
        whole: Index,
    },
    /// The driver has no room for that number.
    #[error("there can be no /dev/nbd{0}: the driver's devices end at /dev/nbd{max}", max = Index::MAX)]
    TooHigh(u32),
}

fn parse(typed: &str) -> Result<Index, DeviceNameError> {
    let not_nbd = || DeviceNameError::NotNbd(typed.to_owned());
    let name = typed.strip_prefix("/dev/").unwrap_or(typed);
    let tail = name.strip_prefix("nbd").ok_or_else(not_nbd)?;
    let (number, partition) = match tail.split_once('p') {
        Some((number, partition)) => (number, Some(partition)),
        None => (tail, None),
    };
    let whole = Index::new(decimal(number).ok_or_else(not_nbd)?)?;
    match partition {
        None => Ok(whole),
        Some(partition) if decimal(partition).is_some() => {
            Err(DeviceNameError::Partition { partition: typed.to_owned(), whole })
        }
        Some(_) => Err(not_nbd()),
    }
}

/// A number written the way the kernel writes one: digits only, no leading zero.
fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_people_type() {
        for typed in ["/dev/nbd12", "nbd12"] {
            assert_eq!(typed.parse::<Index>(), Index::new(12));
        }
        assert_eq!(Index(12).to_string(), "/dev/nbd12");
    }

    #[test]
    fn other_things_are_refused() {
        for typed in ["", "nbd", "/dev/sda", "nbd01", "nbd-1", "nbd+1", "/dev/nbd0px", "nbd99999999999"] {
            assert!(matches!(typed.parse::<Index>(), Err(DeviceNameError::NotNbd(_))), "{typed}");
        }
        assert_eq!("nbd32768".parse::<Index>(), Err(DeviceNameError::TooHigh(32768)));
    }

    #[test]
    fn a_partition_is_answered_with_its_disk() {
        let error = "/dev/nbd3p2".parse::<Index>().unwrap_err();
        assert_eq!(error.to_string(), "/dev/nbd3p2 is a partition: name the whole device, /dev/nbd3");
    }

    #[test]
    fn a_word_is_an_id() {
        assert_eq!("nbd4".parse(), Ok(Named::Device(Index(4))));
        assert_eq!("data".parse(), Ok(Named::Id("data".parse().unwrap())));
        for typed in ["/dev/sda", "nbd01", "", "a b"] {
            assert!(matches!(typed.parse::<Named>(), Err(DeviceNameError::NotNbd(_))), "{typed}");
        }
    }

    #[test]
    fn a_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("data");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let error = link.to_str().unwrap().parse::<Index>().unwrap_err();
        assert_eq!(error, DeviceNameError::NotNbd("/dev/null".into()));
    }
}
