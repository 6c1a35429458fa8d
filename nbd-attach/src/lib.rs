//! Attaches NBD exports to the Linux nbd driver.
//!
//! ```text
//!  main ─▶ cli ─▶ config ─▶ attach ─▶ { driver, opener, attach/{existing, links, claim, settle, undo} }
//!                        ─▶ keep ─▶ { opener, netlink, registry }
//!                        ─▶ detach ─▶ { usage, bounded }
//!                        ─▶ info ─▶ opener
//!                        ─▶ status ─▶ health ─▶ registry
//!                        ─▶ watch ─▶ registry
//!                 attach/existing, keep ─▶ revive: does it answer, and new connections for it
//!                 opener ─▶ { dial, negotiate, tls } ─▶ same: is it what it was?
//!                 tab, boot: what is attached at boot
//!                 log, background, exit: how a command speaks, stays and ends
//!                 all of them on a host: { netlink, sysfs, registry }
//! ```
//!
//! The handshake runs on sockets of our own; generic netlink hands them to the kernel, which then
//! talks to the server itself. What the driver does with them, and what it does not tell, decides
//! most of the code here: see [`attach`] and [`detach`]. Whatever may sleep in the kernel for ever is done by a process of
//! its own, see [`bounded`] and [`netlink::helper`].

pub mod attach;
pub mod background;
pub mod boot;
pub mod bounded;
pub mod cli;
pub mod config;
pub mod detach;
pub mod device;
pub mod dial;
pub mod driver;
pub mod event;
pub mod exit;
mod health;
pub mod host;
pub mod identifier;
pub mod info;
pub mod interrupt;
pub mod keep;
pub mod log;
pub mod negotiate;
pub mod netlink;
pub mod opener;
pub mod registry;
pub mod revive;
pub mod same;
pub mod size;
pub mod status;
pub mod superblock;
pub mod sysfs;
pub mod tab;
pub mod tls;
pub mod usage;
pub mod watch;
