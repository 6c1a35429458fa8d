//! The kernel's generic netlink family "nbd": what its messages look like, and a client whose
//! calls have a deadline even when the driver's do not.

pub mod client;
pub mod destroy;
pub mod events;
pub mod helper;
pub mod message;
pub mod refusal;
