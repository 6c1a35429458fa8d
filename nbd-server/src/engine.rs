//! How operations reach the disk: inline where that cannot block, else by the worker's io_uring or on a
//! fixed pool of threads.
//!
//! Measured on cached 4 KiB reads: `preadv2(RWF_NOWAIT)` costs what `pread` costs (1 µs), a hop
//! to another thread five to nine times that. So reads are tried inline first. What may block for as long as
//! the disk likes goes to the [ring], which needs no thread of ours and answers many at once. The [pool] has
//! the rest: syncs, which take so much longer than a hop, whatever the ring does not do, file systems that wait
//! inside it (FUSE, the network's), and everything where the kernel gives no ring, as in many containers.

pub mod drive;
pub mod inline;
pub mod inode_mark;
pub mod ioctl;
pub mod lane;
pub mod pool;
pub mod ring;
pub mod seat;

use anyhow::Context;

pub use lane::Lane;
pub use pool::{Pool, Share};
pub use ring::Ring;
pub use seat::Seat;

/// How operations that may block are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// By io_uring where the kernel lets us, else by threads
    #[default]
    Auto,
    /// By io_uring, or not serve
    IoUring,
    /// By a fixed pool of threads
    Threads,
}

impl Engine {
    /// A ring for each worker, or none; says in the log which.
    ///
    /// # Errors
    /// Where a ring must be had and cannot.
    pub fn rings(self, workers: usize) -> anyhow::Result<Vec<Option<Ring>>> {
        let none = || (0..workers).map(|_| None).collect();
        if self == Engine::Threads {
            tracing::info!("engine: threads");
            return Ok(none());
        }
        let rings: std::io::Result<Vec<_>> = (0..workers).map(|_| Ring::new().map(Some)).collect();
        match rings {
            Ok(rings) => {
                tracing::info!("engine: io_uring");
                Ok(rings)
            }
            Err(error) if self == Engine::Auto => {
                tracing::info!("engine: threads, as there is no io_uring: {error}");
                Ok(none())
            }
            Err(error) => Err(error).context("there is no io_uring (--engine io-uring)"),
        }
    }
}
