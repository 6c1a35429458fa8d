//! `nbd-crash record`.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

use crate::cli::Record;
use crate::endpoint::Listener;
use crate::proxy::Proxy;

/// Passes requests and replies on until SIGINT or SIGTERM, which end the recording in good order.
pub(super) fn run(record: &Record) -> anyhow::Result<ExitCode> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGINT);
    ends.add(Signal::SIGTERM);
    // Threads inherit it: only the wait below hears them.
    ends.thread_block().context("cannot wait for signals")?;
    let listener = Listener::open(&record.listen)?;
    let proxy = Arc::new(Proxy::new(record)?);
    println!("{}", listener.uri(&proxy.name())?);
    let clients = proxy.clone();
    thread::Builder::new().name("clients".to_owned()).spawn(move || clients.serve(&listener))?;
    ends.wait().context("cannot wait for signals")?;
    proxy.end()?;
    Ok(ExitCode::SUCCESS)
}
