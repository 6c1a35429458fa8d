//! `nbd-crash record`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Record;
use crate::endpoint;
use crate::proxy::Proxy;

/// Passes requests and replies on until SIGINT or SIGTERM, which end the recording in good order.
pub(super) fn run(record: &Record) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let listener = endpoint::listen(&record.listen).await?;
        let proxy = Arc::new(Proxy::new(record)?);
        let uri = endpoint::uri(&listener, proxy.name()).context("cannot say where it listens")?;
        if let Err(error) = logging::announce(&format!("{uri}\n")) {
            tracing::warn!(%error, "cannot tell the URI on standard output");
        }
        tokio::select! {
            never = proxy.serve(&listener) => match never {},
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        proxy.end()?;
        Ok(ExitCode::SUCCESS)
    })
}
