//! What is done to a file system, in a small language, and what it may have become after a crash.
//!
//! A workload is a text of one operation a line; `#` begins a comment. Offsets and lengths are in blocks of 4 KiB.
//!
//! | line | does |
//! |---|---|
//! | `create F` | makes an empty file |
//! | `write F BLOCK COUNT` | writes blocks, through the page cache |
//! | `append F COUNT` | writes blocks at the end |
//! | `dwrite F BLOCK COUNT` | writes blocks past the page cache (O_DIRECT) |
//! | `rename F G`, `link F G`, `unlink F`, `mkdir D`, `rmdir D` | change names |
//! | `trunc F COUNT` | sets the length |
//! | `punch F BLOCK COUNT`, `zero F BLOCK COUNT` | make a range read as zero, by a hole or by unwritten blocks |
//! | `fsync F`, `fdatasync F`, `dirsync D`, `sync` | make durable: a promise |
//! | `fill COUNT` | takes blocks from what is free |
//! | `noise N` | N threads write other files, and sync them now and then, from here to the end |
//! | `mark TEXT` | puts a mark into the recording |
//!
//! The interpreter tells the recorder by marks what it is about to do and what is done, so that the recording alone
//! says what was promised when. Every sector that it writes says which file, block and operation it is from.

pub mod generate;
pub mod model;
pub mod operation;
pub mod raw;
pub mod run;
pub mod sector;
