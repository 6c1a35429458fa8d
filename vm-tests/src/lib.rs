//! Boots Linux in QEMU so that the real nbd driver and real file systems judge our binaries.
//!
//! A test is a function of a [`Scene`]; [`on_every_kernel!`] makes it one test per kernel series, skips it where
//! a tool is missing, and keeps its logs if it fails. Inside it reads like a shell session: boot a [`Vm`], `run`
//! commands, `spawn` daemons, cut the power.

mod accel;
mod builder;
mod chance;
mod channel;
mod cpio;
pub mod crash;
pub mod guest;
pub mod host;
mod image;
pub mod kernel;
mod kit;
mod modules;
pub mod paths;
pub mod patience;
pub mod pki;
pub mod promise;
mod qemu;
mod remains;
mod scene;
mod server;
mod slot;
mod steps;
mod vm;
pub mod wait;

pub use builder::{Builder, HOST_PORT};
pub use chance::Chance;
pub use kernel::{Kernel, Series};
pub use kit::Kit;
pub use patience::Deadline;
pub use pki::PKI;
pub use remains::Remains;
pub use scene::Scene;
pub use server::HostServer;
pub use slot::RUN_TIMES;
pub use steps::{Counters, DISK, Fs, NOTHING_ATTACHED};
pub use vm::{CommandFailed, Finished, Signal, Vm};

/// Turns `fn name(scene: &Scene) -> anyhow::Result<()>` into the tests `name::on_6_1`, `name::on_6_12` and `name::on_7`,
/// which are skipped where a listed [`Kit`] is missing. It is for what the kernel's driver itself may do otherwise:
/// attach, reconnect, resize, detach, say who uses a device, encrypt.
#[macro_export]
macro_rules! on_every_kernel {
    ($name:ident $(, $kit:expr)* $(,)?) => {
        $crate::on_kernels!($name, [$($kit),*],);
    };
}

/// The same, but `name::on_7` is ignored unless it is asked for: `cargo test -p vm-tests on_7 -- --include-ignored`.
#[macro_export]
macro_rules! on_both_kernels {
    ($name:ident $(, $kit:expr)* $(,)?) => {
        $crate::on_kernels!($name, [$($kit),*], #[ignore = "an ordinary run plays it on 6.1 and 6.12"]);
    };
}

/// What both are made of.
#[doc(hidden)]
#[macro_export]
macro_rules! on_kernels {
    ($name:ident, [$($kit:expr),*], $(#[$newest:meta])?) => {
        mod $name {
            use $crate::Kit::*;

            #[test]
            fn on_6_1() {
                $crate::Scene::play(concat!(stringify!($name), "-6.1"), $crate::Series::V6_1, &[$($kit),*], super::$name);
            }

            #[test]
            fn on_6_12() {
                $crate::Scene::play(concat!(stringify!($name), "-6.12"), $crate::Series::V6_12, &[$($kit),*], super::$name);
            }

            #[test]
            $(#[$newest])?
            fn on_7() {
                $crate::Scene::play(concat!(stringify!($name), "-7"), $crate::Series::V7, &[$($kit),*], super::$name);
            }
        }
    };
}
