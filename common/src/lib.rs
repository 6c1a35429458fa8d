//! The NBD protocol and nothing else: bytes in, bytes and decisions out.
//!
//! Both roles of the handshake and the transmission phase live here without a socket, a clock or
//! a runtime, so the server, the attach tool, the tests and the fuzzers share one understanding
//! of the wire. The specification is NetworkBlockDevice/nbd `doc/proto.md` ("the spec" below).
//!
//! | module | what it knows |
//! |---|---|
//! | [`proto`] | every number of the spec, as newtypes whose `Debug` prints names |
//! | [`wire`] | bounded readers and writers of big-endian fields and strings |
//! | [`handshake`] | option haggling: [`handshake::server`] and [`handshake::client`] |
//! | [`option`] | options and their replies, as both roles write and read them |
//! | [`command`] | a request header becomes a typed [`command::Command`] or a [`command::Refusal`] |
//! | [`reply`] | simple, structured and extended replies, encoded and decoded |
//! | [`uri`] | NBD URIs (`doc/uri.md`) |
//! | [`manual`] | what the spec demands: where each demand is met, and which test shows it |
#![forbid(unsafe_code)]

pub mod command;
pub mod handshake;
pub mod manual;
pub mod option;
pub mod proto;
pub mod reply;
pub mod uri;
pub mod wire;

/// The peer broke the protocol in a way that leaves no common ground: the connection must end.
///
/// Lesser faults are answered on a living connection: an option by an error reply, a command by
/// a [`command::Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A magic number was not the one the spec puts there.
    #[error("wrong magic {found:#x} where {expected} was due")]
    Magic {
        /// What the field is called in the spec.
        expected: &'static str,
        /// What arrived.
        found: u64,
    },
    /// The client set handshake flags that the server never offered.
    #[error("client flags {0:#x} include some that were not offered")]
    ClientFlags(u32),
    /// NBD_OPT_EXPORT_NAME named an export that cannot be had; the option has no error reply.
    #[error("NBD_OPT_EXPORT_NAME asked for an export that is not served: {0:?}")]
    UnknownExport(String),
    /// NBD_OPT_EXPORT_NAME came in the clear; the option has no error reply.
    #[error("NBD_OPT_EXPORT_NAME before STARTTLS, which is required")]
    Unencrypted,
    /// NBD_OPT_EXPORT_NAME carried something that is no export name.
    #[error("NBD_OPT_EXPORT_NAME carried a malformed name")]
    MalformedName,
    /// A payload no peer may send was announced: staying in step would take for ever.
    #[error("a request announces a payload of {0} bytes")]
    TooLong(u64),
    /// The peer haggled without end.
    #[error("more than {0} options in one handshake")]
    TooManyOptions(u32),
}
