//! The backend identifier: what `/sys/block/nbdN/backend` says about who attached what.
//!
//! It is the URI, a `#` (which no URI of ours contains) and a random number. The number makes it
//! the identity of one attachment: a device index may be detached and attached by somebody else
//! between two looks, and every destructive step compares the identifier first.

use common::uri::Uri;
use std::io::{self, Read};

/// sysfs prints the identifier into one page without a bound of its own; this stays far below.
const URI_MAX: usize = 1024;
const RANDOM_DIGITS: usize = 16;

/// A new identifier for an attachment of `uri`.
pub fn create(uri: &Uri) -> io::Result<String> {
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(format(&uri.to_string(), u64::from_ne_bytes(random)))
}

/// The URI in an identifier that this tool made; none in anybody else's.
pub fn uri_of(backend: &str) -> Option<&str> {
    let (uri, random) = backend.rsplit_once('#')?;
    let is_ours = random.len() == RANDOM_DIGITS && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_ours.then_some(uri)
}

fn format(uri: &str, random: u64) -> String {
    // A control character would end the line in sysfs early; a URI should have none.
    let plain = uri.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut text = String::new();
    for c in plain {
        if text.len() + c.len_utf8() > URI_MAX {
            text.push_str("...");
            break;
        }
        text.push(c);
    }
    format!("{text}#{random:0width$x}", width = RANDOM_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_attachments_of_one_export_differ() {
        let uri: Uri = "nbd://host:10809/disk".parse().unwrap();
        let (one, two) = (create(&uri).unwrap(), create(&uri).unwrap());
        assert_ne!(one, two);
        assert_eq!(uri_of(&one), Some("nbd://host:10809/disk"));
    }

    #[test]
    fn others_identifiers_are_not_taken_for_ours() {
        for foreign in ["", "mydisk", "nbd://host/#x", "a#0123456789abcdeg", "#"] {
            assert_eq!(uri_of(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn it_is_one_short_line(uri in ".{0,3000}", random in any::<u64>()) {
            let backend = format(&uri, random);
            prop_assert!(backend.len() <= URI_MAX + 3 + 1 + RANDOM_DIGITS);
            prop_assert!(!backend.contains(['\n', '\0']));
            prop_assert!(uri_of(&backend).is_some());
        }
    }
}
