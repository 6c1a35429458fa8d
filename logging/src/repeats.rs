//! Tells equal warnings once and then counts them, so that no client and no disk can fill a log.
//!
//! Two warnings or errors are equal if they come from the same place in the code, with the same export (the field
//! `export` of the line or, as its last field, of a span), message and `error`, but for the numbers in these: a disk fails at many offsets.
//! One place has so many different lines at a time, too. After each interval a line says how many more there were.
//! What is less than a warning is told as often as it happens: by default there is little of it, and whoever asks for
//! more wants it.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::journal;
use crate::sink::Sink;

/// How often counts are told.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Different lines that one place in the code has in that time.
const DIFFERENT_MAX: usize = 8;
/// Of what is said here.
const TARGET: &str = "logging";

/// What was said lately.
#[derive(Default)]
pub(crate) struct Repeats {
    places: Mutex<HashMap<Identifier, Place>>,
    awake: Condvar,
}

/// A place in the code that has said something.
struct Place {
    level: Level,
    /// By what makes them different.
    lines: HashMap<String, Line>,
    /// Lines of which there were too many different ones.
    others: u64,
}

struct Line {
    text: String,
    more: u64,
    /// Whether it was said since counts were told last.
    fresh: bool,
}

impl Repeats {
    /// Whether a line is to be told.
    fn admit(&self, place: Identifier, level: Level, text: &Text) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        self.awake.notify_all();
        let place = places.entry(place).or_insert_with(|| Place { level, lines: HashMap::new(), others: 0 });
        let key = text.key();
        if let Some(line) = place.lines.get_mut(&key) {
            line.more += 1;
            return false;
        }
        if place.lines.len() == DIFFERENT_MAX {
            place.others += 1;
            return false;
        }
        place.lines.insert(key, Line { text: text.whole(), more: 0, fresh: true });
        true
    }

    /// Tells what was counted, and forgets what was not said again.
    pub(crate) fn tell(&self) {
        let mut told: Vec<(Level, String, u64)> = Vec::new();
        {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            for place in places.values_mut() {
                for line in place.lines.values_mut() {
                    if line.more > 0 {
                        told.push((place.level, line.text.clone(), line.more));
                    }
                    line.fresh = std::mem::take(&mut line.more) > 0;
                }
                if place.others > 0 {
                    let example = place.lines.values().next().map_or("", |line| &line.text);
                    told.push((place.level, format!("others like it: {example}"), place.others));
                }
                place.others = 0;
                place.lines.retain(|_, line| line.fresh);
            }
            places.retain(|_, place| !place.lines.is_empty());
        }
        // Not under the lock: telling asks for it.
        for (level, text, more) in told {
            match level {
                Level::ERROR => tracing::error!(target: TARGET, more, "again: {text}"),
                _ => tracing::warn!(target: TARGET, more, "again: {text}"),
            }
        }
    }

    /// Waits until there is something to count.
    fn wait(&self) {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        // Lines are lost without telling anybody: that is looked at now and then.
        drop(self.awake.wait_timeout_while(places, INTERVAL, |places| places.is_empty()));
    }
}

/// Tells counts, and how many lines were lost, from time to time.
pub(crate) fn tell_in_background(repeats: &Arc<Repeats>, sink: &Sink) {
    let (repeats, sink) = (repeats.clone(), sink.clone());
    let tell = move || loop {
        repeats.wait();
        thread::sleep(INTERVAL);
        repeats.tell();
        let lines = sink.lost();
        if lines > 0 {
            tracing::warn!(target: TARGET, lines, "lines of this log were lost: nobody took them in time");
        }
    };
    // Without it, counts are told at the end only.
    let _ = thread::Builder::new().name("log-counts".to_owned()).spawn(tell);
}

/// A format that leaves out what was said already.
pub(crate) struct Format<F> {
    inner: F,
    repeats: Arc<Repeats>,
    in_journal: bool,
}

impl<F> Format<F> {
    pub(crate) fn new(inner: F, repeats: Arc<Repeats>, in_journal: bool) -> Format<F> {
        Format { inner, repeats, in_journal }
    }
}

impl<S, N, F> FormatEvent<S, N> for Format<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (level, place) = (*event.metadata().level(), event.metadata().callsite());
        if level <= Level::WARN && event.metadata().target() != TARGET {
            let mut text = Text::default();
            for span in ctx.event_scope().into_iter().flatten() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                    text.export += exported(&fields.fields);
                }
            }
            event.record(&mut text);
            if !self.repeats.admit(place, level, &text) {
                // Nothing is written of what cannot be formatted.
                return Err(fmt::Error);
            }
        }
        if self.in_journal {
            write!(out, "<{}>", journal::priority(level))?;
        }
        self.inner.format_event(ctx, out, event)
    }
}

/// Which export a span is about: its last field, as text or as JSON.
fn exported(fields: &str) -> &str {
    let at = ["export=", "\"export\":"].iter().find_map(|name| fields.rfind(name));
    at.map_or("", |at| fields[at..].trim_end_matches('}'))
}

/// What makes a line what it is.
#[derive(Default)]
struct Text {
    export: String,
    message: String,
    error: String,
}

impl Text {
    fn whole(&self) -> String {
        let parts = [self.export.as_str(), self.error.as_str()];
        let rest: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if rest.is_empty() { self.message.clone() } else { format!("{} ({})", self.message, rest.join(", ")) }
    }

    fn key(&self) -> String {
        let numberless = |text: &str| text.replace(|sign: char| sign.is_ascii_digit(), "");
        format!("{}\0{}\0{}", self.export, numberless(&self.message), numberless(&self.error))
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "export" => write!(self.export, "export={value:?}").expect("a text takes text"),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => write!(self.message, "{value:?}").expect("a text takes text"),
            "error" => write!(self.error, "{value:?}").expect("a text takes text"),
            _ => {}
        }
    }
}
