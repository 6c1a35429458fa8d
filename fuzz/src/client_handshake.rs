//! A server's bytes against the client's side of the negotiation.

use common::handshake::client::{Client, REPLY_DATA_MAX, Step};

/// The first byte chooses what the client wants; the rest is what the server sends.
pub fn run(data: &[u8]) {
    let Some((goal, mut rest)) = data.split_first() else { return };
    let client = match goal % 3 {
        0 => Client::new("export").expect("a fine name"),
        1 => Client::info("export").expect("a fine name"),
        _ => Client::list(),
    };
    let mut client = if goal & 8 != 0 { client.over_tls() } else { client };
    loop {
        let need = client.need();
        assert!((1..=REPLY_DATA_MAX).contains(&need), "{need} bytes are wanted at once");
        let Some((input, left)) = rest.split_at_checked(need) else { return };
        rest = left;
        match client.step(input) {
            Ok(Step::Continue { next, .. } | Step::StartTls { next, .. }) => client = next,
            Ok(Step::Ready { export, .. }) => {
                assert!(export.block_sizes.is_none_or(common::handshake::BlockSizes::are_valid));
                return;
            }
            Ok(Step::Told { .. }) => return,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
}
