//! Fuzz targets: one function per parser, and two for whole sessions.
//!
//! Each takes bytes and panics when a property is broken. `cargo xtask fuzz` runs them under
//! libFuzzer; the ordinary test run replays the corpus that such runs have left in `corpus/`.
//!
//! | target | whose bytes | what must hold |
//! |---|---|---|
//! | [`server_handshake`] | a client's | every answer is made of well-formed option replies; little is kept |
//! | [`client_handshake`] | a server's | the client ends, and wants little memory |
//! | [`transmission`] | both roles' | what is decoded encodes to the same bytes; what is admitted is inside the export |
//! | [`uri`] | a person's | a URI prints as one that means the same |
//! | [`texts`] | an operator's | a configuration or an order is understood or refused |
//! | [`netlink`] | the kernel's | a message that was understood encodes to one that is understood the same |
//! | [`session`] | a client's, after the negotiation | each request is answered once, and reads tell what was written |
//! | [`connection`] | a client's, from the first byte | the connection ends when its client has |

pub mod client_handshake;
pub mod connection;
pub mod netlink;
pub mod server_handshake;
pub mod session;
pub mod texts;
pub mod transmission;
pub mod uri;

mod stage;

/// A target's function.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("client_handshake", client_handshake::run),
    ("connection", connection::run),
    ("netlink", netlink::run),
    ("server_handshake", server_handshake::run),
    ("session", session::run),
    ("texts", texts::run),
    ("transmission", transmission::run),
    ("uri", uri::run),
];
