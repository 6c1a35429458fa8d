//! `nbd-server ctl`: asks or tells a running server over its admin socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::admin::message::{Answer, Request, Status};
use crate::cli::{Action, Ctl};

/// Does what was typed and prints the answer.
///
/// # Errors
/// There is no server, or it did not do it; its reason is a sentence.
pub fn run(ctl: &Ctl) -> anyhow::Result<ExitCode> {
    let shown = ctl.admin.display();
    let mut socket = UnixStream::connect(&ctl.admin).with_context(|| {
        format!("no server answers at {shown} (it listens there if started with --admin {shown})")
    })?;
    serde_json::to_writer(&mut socket, &request(&ctl.action))?;
    socket.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).context("the server hung up")?;
    match serde_json::from_str(&line).context("the server hung up, or speaks another language")? {
        Answer::Error(reason) => bail!("{reason}"),
        Answer::Exports(_) if ctl.json => logging::print(line)?,
        Answer::Exports(exports) => logging::print(exports.iter().map(told).collect::<String>())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn request(action: &Action) -> Request {
    match action.clone() {
        Action::List { export } => Request::List { export },
        Action::Mode { mode, export } => Request::Mode { export, mode: mode.to_string() },
        Action::Drain { export } => Request::Drain { export },
        Action::ClearPoison { export } => Request::ClearPoison { export },
    }
}

fn told(export: &Status) -> String {
    let name = if export.name.is_empty() { "(default export)" } else { &export.name };
    let access = if export.read_only { ", read-only" } else { "" };
    let ending = if export.ending { ", ending: it takes no more clients" } else { "" };
    let mut told = format!("{name}: {}, {} bytes{access}{ending}\n", export.mode, export.size_bytes);
    told += &format!(
        "  acknowledged and not known to be stable: {} bytes, {} of them in the early-ack cache\n",
        export.unstable_bytes, export.dirty_bytes
    );
    if let Some(poison) = &export.poison {
        told += &format!("  POISONED: {poison}\n");
    }
    if let Some(source) = export.source.as_ref().and_then(|source| source.told.as_ref()) {
        told += &format!("  {source}\n");
    }
    if let Some(epoch) = &export.epoch {
        told += &format!("  epoch: {epoch}\n");
    }
    let counters = export.counters.iter().map(|(name, value)| format!("{name}={value}"));
    told += &format!("  {}\n", counters.collect::<Vec<_>>().join(" "));
    told
}
