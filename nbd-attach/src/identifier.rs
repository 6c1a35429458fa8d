//! The backend identifier: what `/sys/block/nbdN/backend` says about who attached what.
//!
//! It is the URI, `#`, the name given with `--id` if there was one, and after another `#` a random number; no
//! URI of ours contains a `#`. The number makes it the identity of one attachment: a device index may be detached
//! and attached by somebody else between two looks, and every destructive step compares the identifier first. The
//! kernel keeps it for as long as the device is attached, whatever becomes of this tool and its files.

use common::uri::Uri;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// sysfs prints the identifier into one page without a bound of its own; this stays far below.
const URI_MAX: usize = 1024;
const RANDOM_DIGITS: usize = 16;
const ID_MAX: usize = 64;

/// A name for a device, chosen by whoever attaches it: `--id`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Id(String);

/// Why a text is no name for a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the id of a device: at most {ID_MAX} letters, digits, '.', '_' and '-', beginning with a \
     letter or digit, and not of the kernel's own kind, such as nbd0"
)]
pub struct IdError(String);

impl FromStr for Id {
    type Err = IdError;

    fn from_str(typed: &str) -> Result<Id, IdError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let kernels =
            typed.strip_prefix("nbd").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let good = typed.starts_with(|c: char| c.is_ascii_alphanumeric())
            && typed.chars().all(plain)
            && typed.len() <= ID_MAX
            && !kernels;
        if good { Ok(Id(typed.to_owned())) } else { Err(IdError(typed.to_owned())) }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an identifier of this tool tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told<'a> {
    /// What was attached; cut short if it is very long.
    pub uri: &'a str,
    /// As what.
    pub id: Option<&'a str>,
}

impl Told<'_> {
    /// Whether this is an attachment of that URI.
    #[must_use]
    pub fn is_of(&self, uri: &Uri) -> bool {
        self.uri == shortened(&uri.to_string())
    }
}

/// A new identifier for an attachment of `uri`.
pub fn create(uri: &Uri, id: Option<&Id>) -> io::Result<String> {
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(format(&uri.to_string(), id, u64::from_ne_bytes(random)))
}

/// The random number of an identifier that this tool made.
#[must_use]
pub fn number(backend: &str) -> Option<&str> {
    backend.rsplit_once('#').map(|(_, random)| random).filter(|random| is_number(random))
}

/// Whether a text is such a number.
#[must_use]
pub fn is_number(text: &str) -> bool {
    text.len() == RANDOM_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What an identifier says that this tool made; nothing if somebody else did.
#[must_use]
pub fn read(backend: &str) -> Option<Told<'_>> {
    number(backend)?;
    let (rest, _) = backend.rsplit_once('#')?;
    match rest.rsplit_once('#') {
        None => Some(Told { uri: rest, id: None }),
        Some((uri, id)) => Some(Told { uri, id: Some(id) }),
    }
}

fn format(uri: &str, id: Option<&Id>, random: u64) -> String {
    let id = id.map(|id| format!("#{id}")).unwrap_or_default();
    format!("{}{id}#{random:0width$x}", shortened(uri), width = RANDOM_DIGITS)
}

fn shortened(uri: &str) -> String {
    // A control character would end the line in sysfs early; a URI should have none, and no number sign.
    let plain = uri.chars().map(|c| if c.is_control() || c == '#' { '?' } else { c });
    let mut text = String::new();
    for c in plain {
        if text.len() + c.len_utf8() > URI_MAX {
            text.push_str("...");
            break;
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_attachments_of_one_export_differ() {
        let uri: Uri = "nbd://host:10809/disk".parse().unwrap();
        let (one, two) = (create(&uri, None).unwrap(), create(&uri, None).unwrap());
        assert_ne!(one, two);
        assert_eq!(read(&one), Some(Told { uri: "nbd://host:10809/disk", id: None }));
        let named = create(&uri, Some(&"vm-1".parse().unwrap())).unwrap();
        let told = read(&named).unwrap();
        assert_eq!(told.id, Some("vm-1"));
        assert!(told.is_of(&uri) && !told.is_of(&"nbd://host:10809/other".parse().unwrap()));
    }

    #[test]
    fn others_identifiers_are_not_taken_for_ours() {
        for foreign in ["", "mydisk", "nbd://host/#x", "a#0123456789abcdeg", "#"] {
            assert_eq!(read(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_id_is_a_plain_word() {
        for good in ["data", "vm-1.example_disk", "0", "nbd", "nbd-data"] {
            assert_eq!(good.parse::<Id>().unwrap().to_string(), good);
        }
        let long = "x".repeat(65);
        for bad in ["", "nbd0", "nbd12p1", "a/b", "a#b", "-a", ".hidden", "a b", "ä", &long] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn it_is_one_short_line(uri in ".{0,3000}", random in any::<u64>(), named in any::<bool>()) {
            let id: Id = "name".parse().unwrap();
            let backend = format(&uri, named.then_some(&id), random);
            prop_assert!(backend.len() <= URI_MAX + 3 + 2 + ID_MAX + RANDOM_DIGITS);
            prop_assert!(!backend.contains(['\n', '\0']));
            prop_assert_eq!(read(&backend).unwrap().id, named.then_some("name"));
        }
    }
}
