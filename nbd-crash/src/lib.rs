//! Finds out what survives a crash.
//!
//! An NBD server sees every write, FLUSH and FUA, so whoever listens to it knows all that a crash may take: every
//! subset of the writes that nothing had made durable yet, each of them torn or whole. This crate records what an
//! export is asked, makes those states in memory, and asks about each whether what was promised is there.
//!
//! # In ten minutes
//!
//! **Does my file system, or what runs on it, keep its promises?** Record while it works, then explore:
//!
//! ```sh
//! nbd-server --record disk.nbdrec --marks /run/marks memory:64M & sleep 1
//! nbd-attach attach nbd://localhost                      # /dev/nbd0
//! mkfs.ext4 /dev/nbd0 && mount /dev/nbd0 /mnt
//! nbd-crash workload ordinary.txt --root /mnt --marks /run/marks
//! umount /mnt && nbd-attach detach /dev/nbd0 && kill %1
//! nbd-crash explore disk.nbdrec --oracle ext4 --report crash.html
//! ```
//!
//! `--oracle ext4` reads ext4 in memory, without root, a thousand states a second and more. `--oracle mount:xfs` asks
//! this machine's kernel, `--oracle cmd:'…'` your own program, which finds the state at `$NBD_CRASH_URI` and the marks
//! that came before the crash in `$NBD_CRASH_MARKS`: for a database, mark each commit (`nbd-crash mark --to /run/marks
//! 'committed 17'`), and let the command open the copy and look for it. What a workload may say is in [`workload`].
//!
//! **What would a broken server do to it?** `--contract no-fua` and its kin take the device to promise less than the
//! protocol does: the states are then those that such a server could leave.
//!
//! **Does this server keep its promises to its clients?** Put it between two recorders. The states of its storage are
//! judged by what it promised in front, byte by byte, and no file system is needed:
//!
//! ```sh
//! nbd-server --unix storage memory:1M & sleep 1
//! nbd-crash record --to 'nbd+unix:///?socket=storage' --listen ./back --log back.nbdrec & sleep 1
//! qemu-nbd -t -e 8 -f raw --cache unsafe -k $PWD/qemu 'nbd+unix:///?socket=back' & sleep 1
//! nbd-crash record --to 'nbd+unix:///?socket=qemu' --listen ./front --log front.nbdrec & sleep 1
//! nbd-crash generate --raw 200 >requests
//! nbd-crash workload requests --nbd 'nbd+unix:///?socket=front' --connections 4
//! kill %4 %3 %2; sleep 1
//! nbd-crash explore back.nbdrec --front front.nbdrec --violations 1
//! ```
//!
//! `--cache unsafe` makes qemu-nbd ignore FLUSH and FUA, and this is what it looks like:
//!
//! ```text
//! nbd@30:2
//!     bytes 126976 to 135168: not write 18 or something newer, which was durable
//!     bytes 147456 to 163840: not write 13 or something newer, which was durable
//!     bytes 651264 to 667648: not write 24 or something newer, which was durable
//!   it is enough to lose (5 checks; nbd@30:-10):
//!     WRITE 10 of 16384 bytes at 147456, connection 1: nothing had made it durable yet: the FLUSH received as
//!     record 44 and answered as record 48 covers it
//! ```
//!
//! Read: had the storage lost power when 30 things had been recorded of it, and kept only its write 2, three ranges
//! would not hold what the front had been promised. Most of that may be there: it is enough that write 10 is not, by
//! which the server passed on what its client had sent as write 13 and flushed. Nothing had made write 10 durable yet; a
//! FLUSH of the storage came later. With `--cache writeback` every promise is kept.
//!
//! **What does such a state look like?** Every state has a name, and is served by it as a device of its own, which can
//! be written to: `nbd-crash serve disk.nbdrec --state no-fua@74:none`, then attach, mount and look.
//!
//! # How it goes
//!
//! ```text
//!  recording ─▶ History ─▶ Contract ─▶ Walk: at a time, what is durable and what may be lost
//!                                        │ states: subsets of what may be lost, whole or torn
//!                                        ▼
//!                      Exploration ─▶ Image of a state ─▶ Oracle: raw, ext4, mount, cmd
//!                                        │ if a promise is broken
//!                                        ▼
//!                                    minimise: the writes that matter ─▶ text, JSON, report
//! ```
//!
//! Crashes are tried where most can be lost, right before a FLUSH or FUA is answered, and where most was promised,
//! right after each mark, or after such an answer where marks are not asked for. At each such point: nothing kept, all kept, each write alone, each missing, every subset of
//! four and fewer, and random ones, of which every other has torn writes. Equal content under equal promises is judged
//! once.
//!
//! Where it differs from a real crash: a write tears at 4096 bytes unless `--unit` says otherwise, since ext4's
//! superblock does not survive less; writes of one connection that overlap in flight take effect in the order of
//! receipt; what a TRIM leaves is taken for zeroes by file systems, and for anything by the judge of bytes.

#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod contract;
pub mod dm_log;
pub mod endpoint;
pub mod explore;
pub mod history;
pub mod image;
pub mod minimise;
pub mod oracle;
pub mod proxy;
pub mod report;
pub mod serve;
pub mod state;
pub mod states;
pub mod walk;
pub mod workload;
