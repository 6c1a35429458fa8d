//! A client's bytes against the server's side of the negotiation.

use common::handshake::server::{Encryption, Exports, OPTION_DATA_MAX, Server, Step};
use common::handshake::{BlockSizes, Export, Listed};
use common::option::{REPLY_HEADER_LEN, ReplyHeader};
use common::proto::TransmissionFlags;

/// Bytes one option is answered with at most: a handful of replies with the longest strings.
const ANSWER_MAX: usize = 64 << 10;

/// The default export and one with a short name.
struct Two;

impl Exports for Two {
    type Handle = ();

    fn list(&self) -> Vec<Listed> {
        [("", None), ("a", Some("second".to_owned()))]
            .map(|(name, description)| Listed { name: name.to_owned(), description })
            .into()
    }

    fn find(&self, name: &str) -> Option<(Export, ())> {
        let block_sizes = Some(BlockSizes { minimum: 1, preferred: 4096, maximum_payload: 32 << 20 });
        let (name, description) = match name {
            "" => (None, None),
            "a" => (Some("a".to_owned()), Some("second".to_owned())),
            _ => return None,
        };
        Some((
            Export { size: 1 << 20, flags: TransmissionFlags::HAS_FLAGS, block_sizes, name, description },
            (),
        ))
    }

    fn contexts(&self, (): &()) -> Vec<String> {
        vec!["base:allocation".into(), "x-test:one".into()]
    }
}

/// The first byte chooses whether the connection is encrypted; the rest is what the client sends.
pub fn run(data: &[u8]) {
    let Some((encryption, mut rest)) = data.split_first() else { return };
    let encryption = match encryption % 3 {
        0 => Encryption::Unavailable,
        1 => Encryption::Optional,
        _ => Encryption::Required,
    };
    let (mut server, _) = Server::new(encryption);
    let mut encrypted = false;
    loop {
        let need = server.need();
        assert!((1..=OPTION_DATA_MAX).contains(&need), "{need} bytes are wanted at once");
        let Some((input, left)) = rest.split_at_checked(need) else { return };
        rest = left;
        match server.step(input, &Two) {
            Ok(Step::Continue { send, next }) => {
                well_formed(&send);
                server = next;
            }
            Ok(Step::StartTls { send, next }) => {
                well_formed(&send);
                assert!(!encrypted && encryption != Encryption::Unavailable, "TLS begins once");
                encrypted = true;
                server = next;
            }
            Ok(Step::Transmit { agreed, .. }) => {
                assert!(encrypted || encryption != Encryption::Required, "nothing is served in the clear");
                assert!(agreed.contexts.len() <= 2);
                return;
            }
            Ok(Step::Close { send }) => return well_formed(&send),
            Err(violation) => {
                assert!(!violation.to_string().is_empty());
                return;
            }
        }
    }
}

/// Whole option replies and nothing else.
fn well_formed(mut sent: &[u8]) {
    assert!(sent.len() <= ANSWER_MAX, "{} bytes in answer to one option", sent.len());
    while !sent.is_empty() {
        let (header, rest) = sent.split_at(REPLY_HEADER_LEN);
        let header = ReplyHeader::decode(header).expect("a reply of ours");
        sent = &rest[header.length as usize..];
    }
}
