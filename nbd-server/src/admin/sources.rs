//! Looks at what exports serve again: whether it is still what was opened.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::export::{Export, Source};

/// How long it may take: a disk that hangs is not waited for.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Exports that are looked at at a time.
const TOGETHER: usize = 16;

/// Looks at the files and devices of these exports. What is found is told by their [`Source`]s, and by the log if it
/// is not what was found before.
pub async fn look_again(exports: &[Arc<Export>]) {
    let deadline = Instant::now() + LOOK_MAX;
    let sources = exports.iter().filter_map(|export| Some((export, export.source()?)));
    stream::iter(sources)
        .for_each_concurrent(TOGETHER, |(export, source)| async move {
            if Instant::now() >= deadline {
                return;
            }
            let (span, looker) = (export.span(), source.clone());
            let look = spawn_blocking(move || {
                if looker.look() {
                    span.in_scope(|| log(&looker));
                }
            });
            if timeout_at(deadline, look).await.is_err() {
                source.does_not_answer();
            }
        })
        .await;
}

fn log(source: &Source) {
    match source.told() {
        Some(told) => tracing::warn!("{told}"),
        None => tracing::info!("{} is as it was again", source.path().display()),
    }
}
