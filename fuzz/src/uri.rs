//! What a person types.

use common::uri::Uri;

/// A URI that is understood prints as one that means the same.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Uri>() {
        Ok(uri) => {
            let printed = uri.to_string();
            let again = printed.parse::<Uri>();
            assert_eq!(again.as_ref(), Ok(&uri), "{text:?} prints as {printed:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
