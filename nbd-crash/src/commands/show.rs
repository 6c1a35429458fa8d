//! `nbd-crash show` and `serve`: what was recorded, and what was left of it.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use serde_json::json;

use super::{base, open};
use crate::cli::{Serve, Show};
use crate::contract::Contract;
use crate::history::{Content, Event, Happening, History};
use crate::serve::Served;
use crate::state::Named;
use crate::walk::Walk;

pub(super) fn run(show: &Show) -> anyhow::Result<ExitCode> {
    let history = open(&show.log)?;
    let line = |event| if show.json { as_json(&history, event) } else { as_text(&history, event) };
    logging::print(history.events.iter().map(|event| line(event) + "\n").collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// Milliseconds, sequence number, connection, what.
fn as_text(history: &History, event: &Event) -> String {
    let Event { seq, at_ns, connection, what } = event;
    let told = match what {
        Happening::Write(index) => {
            let write = &history.writes[*index];
            let fua = if write.fua { " FUA" } else { "" };
            format!("{} {} bytes at {}{fua}", kind(&write.content), write.length, write.offset)
        }
        Happening::WriteAnswered(index) => {
            let write = &history.writes[*index];
            answer(write.seq, write.answered)
        }
        Happening::Flush(_) => "FLUSH".to_owned(),
        Happening::FlushAnswered(index) => {
            let flush = &history.flushes[*index];
            answer(flush.seq, flush.answered)
        }
        Happening::Mark(text) => format!("mark: {text}"),
        Happening::Opened => "opened".to_owned(),
        Happening::Closed => "closed".to_owned(),
    };
    let milliseconds = *at_ns as f64 / 1e6;
    format!("{milliseconds:12.3} {seq:7} {connection:3}  {told}")
}

fn as_json(history: &History, event: &Event) -> String {
    let told = match &event.what {
        Happening::Write(index) => {
            let write = &history.writes[*index];
            json!({"request": kind(&write.content), "offset": write.offset, "length": write.length, "fua": write.fua})
        }
        Happening::Flush(_) => json!({"request": "FLUSH"}),
        Happening::WriteAnswered(index) => {
            let write = &history.writes[*index];
            json!({"answers": write.seq, "error": write.answered.map(|(_, error)| error)})
        }
        Happening::FlushAnswered(index) => {
            let flush = &history.flushes[*index];
            json!({"answers": flush.seq, "error": flush.answered.map(|(_, error)| error)})
        }
        Happening::Mark(text) => json!({"mark": text}),
        Happening::Opened => json!({"connection_is": "opened"}),
        Happening::Closed => json!({"connection_is": "closed"}),
    };
    let mut line = json!({"seq": event.seq, "at_ns": event.at_ns, "connection": event.connection});
    if let (Some(line), serde_json::Value::Object(told)) = (line.as_object_mut(), told) {
        line.extend(told);
    }
    line.to_string()
}

fn kind(content: &Content) -> &'static str {
    match content {
        Content::Data(_) => "WRITE",
        Content::Zero => "ZERO",
        Content::Nothing => "TRIM",
    }
}

fn answer(request: u64, answered: Option<(usize, u32)>) -> String {
    match answered {
        Some((_, 0)) | None => format!("answer to {request}"),
        Some((_, error)) => format!("answer to {request}: error {error}"),
    }
}

pub(super) fn serve(serve: &Serve) -> anyhow::Result<ExitCode> {
    let history = open(&serve.log)?;
    let name = match (&serve.state, serve.at) {
        (Some(state), _) => state.clone(),
        (None, Some(seq)) => format!("{}@{seq}:all", Contract::Nbd.name()),
        (None, None) => unreachable!("one of them was typed"),
    };
    let named = Named::parse(&history, &name)?;
    let stability = Arc::new(named.contract.stability(&history));
    let mut walk = Walk::new(history.clone(), stability, base(serve.base.as_deref())?);
    walk.go(named.time)?;
    let kept = named.kept(&history, &walk.volatile)?;
    let image = Arc::new(walk.state(&kept)?);
    let served = Served::new(history.header.size);
    served.show(&image);
    let uri = served.serve(&serve.listen, &history.header.name)?;
    if let Err(error) = logging::announce(&format!("{uri}\n")) {
        tracing::warn!(%error, "cannot tell the URI on standard output");
    }
    loop {
        thread::park();
    }
}
