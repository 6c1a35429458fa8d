//! Logs and prints without ever standing in the way of what is logged.
//!
//! A log line is never worth a request: lines wait in a bounded queue for a thread that writes them to standard error,
//! and where the queue is full they are lost and counted. A log that is closed, full or read by nobody blocks and ends
//! nothing. Equal warnings are told once and then counted ([`repeats`]). Under systemd lines carry the journal's
//! priorities. What commands print is in [`print`].
//!
//! ```no_run
//! let log = logging::start(&logging::Options::default());
//! // Confine the process or fork here, if at all: threads come after that.
//! log.in_background();
//! tracing::info!("serving");
//! log.finish();
//! ```

#![forbid(unsafe_code)]

mod journal;
pub mod print;
pub mod repeats;
mod sink;

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

pub use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use print::{announce, complain, print};
use repeats::{Format, Repeats};
use sink::Sink;

/// The settings of a log.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The least urgent level that is logged. Without it `RUST_LOG` decides, and `info` where that is not set either.
    pub level: Option<LevelFilter>,
    /// Text or JSON.
    pub look: Look,
    /// Lines may begin with the time. The journal has its own.
    pub time: Time,
}

/// The form of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The time at the beginning of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// They do.
    Shown,
    /// They do not.
    Hidden,
}

/// The log of this process.
#[derive(Clone)]
pub struct Log {
    sink: Sink,
    repeats: Arc<Repeats>,
}

impl Default for Options {
    fn default() -> Options {
        Options { level: None, look: Look::Text, time: Time::Shown }
    }
}

/// Takes what is logged from now on. Until [`Log::in_background`] the thread that logs writes it, if standard error takes
/// it at once.
///
/// # Panics
/// When it was called before.
pub fn start(options: &Options) -> Log {
    let environment = std::env::var("RUST_LOG").ok().filter(|_| options.level.is_none());
    let wanted = environment.as_deref().map(Targets::from_str);
    let filter = match &wanted {
        Some(Ok(filter)) => filter.clone(),
        _ => Targets::new().with_default(options.level.unwrap_or(LevelFilter::INFO)),
    };
    let sink = Sink::default();
    let repeats = Arc::new(Repeats::default());
    let in_journal = journal::is_stderr();
    let colours = !in_journal && std::io::stderr().is_terminal();
    let time = options.time == Time::Shown && !in_journal;
    macro_rules! install {
        ($inner:expr, $fields:expr) => {{
            let format = Format::new($inner, repeats.clone(), in_journal);
            let lines = tracing_subscriber::fmt::layer()
                .fmt_fields($fields)
                .event_format(format)
                .with_writer(sink.clone())
                .with_ansi(colours)
                .log_internal_errors(false);
            tracing_subscriber::registry().with(filter).with(lines).init();
        }};
    }
    let text = format().with_target(false);
    match (options.look, time) {
        (Look::Text, true) => install!(text, format::DefaultFields::new()),
        (Look::Text, false) => install!(text.without_time(), format::DefaultFields::new()),
        (Look::Json, true) => install!(format().json(), format::JsonFields::new()),
        (Look::Json, false) => install!(format().json().without_time(), format::JsonFields::new()),
    }
    if let Some(Err(error)) = wanted {
        tracing::warn!(%error, "RUST_LOG is not understood; write for example warn, or nbd_server=debug");
    }
    Log { sink, repeats }
}

impl Log {
    /// Leaves writing to a thread, for which nobody waits. To be called where threads may be started: what confines a
    /// process often holds only for threads that come after it.
    pub fn in_background(&self) {
        self.sink.start();
        repeats::tell_in_background(&self.repeats, &self.sink);
    }

    /// Waits, not for long, until what was logged is written.
    pub fn finish(&self) {
        self.repeats.tell();
        self.sink.drain();
    }
}
