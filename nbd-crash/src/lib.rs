//! nbd-crash.
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
