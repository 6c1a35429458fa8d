//! Boots Linux in QEMU so that the real nbd driver and real file systems judge our binaries.
//!
//! A test is a function of a [`Scene`]; [`on_both_kernels!`] makes it one test per kernel series, skips it where
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
pub use steps::{Counters, DISK, Fs};
pub use vm::{CommandFailed, Finished, Signal, Vm};

/// Turns `fn name(scene: &Scene) -> anyhow::Result<()>` into the tests `name::on_6_1` and `name::on_6_12`, which
/// are skipped where a listed [`Kit`] is missing.
#[macro_export]
macro_rules! on_both_kernels {
    ($name:ident $(, $kit:expr)* $(,)?) => {
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
        }
    };
}
