//! The report: one HTML file with the timeline drawn, what was found, and all of it as JSON for scripts.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::explore::{Outcome, Violation};
use crate::history::{Happening, History};
use crate::state::Named;

/// Pixels: of an event, of a connection's row, and above the first.
const EVENT: usize = 4;
const ROW: usize = 26;
const TOP: usize = 34;
/// Rows at most.
const ROWS_MAX: u16 = 64;
/// Lanes of a row, and pixels of one.
const LANES: usize = 5;
const LANE: usize = 3;
/// Pixels left of the first event, for the rows' names.
const LEFT: usize = 96;

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}code{background:#f2f4f7;padding:0 .25em}\
.line{overflow-x:auto;border:1px solid #d6dbe1}.bad{color:#b42318}.good{color:#18794e}\
.legend span{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em;vertical-align:-.1em}\
details{border-left:3px solid #b42318;padding-left:.8rem;margin:.8rem 0}";
const WRITE: &str = "#6e8fb5";
const FUA: &str = "#1f4e8c";
const FLUSH: &str = "#18794e";
const MARK: &str = "#8a6d1b";
const CRASH: &str = "#b42318";

/// Draws and tells.
pub fn html(history: &History, outcome: &Outcome) -> anyhow::Result<String> {
    let mut out = String::new();
    let title = format!("{}: {} states", outcome.contract.name(), outcome.states);
    write!(out, "<!doctype html><html lang=en><meta charset=utf-8><title>nbd-crash: {title}</title>")?;
    write!(out, "<style>{STYLE}</style><h1>nbd-crash: {title}</h1>")?;
    let verdict = match outcome.violations.len() {
        0 => "<b class=good>Every promise was kept.</b>".to_owned(),
        count => format!(
            "<b class=bad>{count} states break a promise</b>, the first after {}.",
            outcome.first_violation.unwrap_or(0)
        ),
    };
    write!(
        out,
        "<p>{verdict} Crashes were tried at {} points; at most {} writes could be lost at one. \
         {:.0} states a second.</p>",
        outcome.points,
        outcome.volatile_max,
        outcome.states as f64 / outcome.seconds.max(f64::MIN_POSITIVE)
    )?;
    write!(out, "<h2>Timeline</h2><p class=legend>one row for each connection, from receipt to answer")?;
    for (colour, what) in [
        (WRITE, "write"),
        (FUA, "write with FUA"),
        (FLUSH, "FLUSH"),
        (MARK, "mark"),
        (CRASH, "crash that breaks a promise, and writes whose loss is enough"),
    ] {
        write!(out, "<span style=background:{colour}></span>{what}")?;
    }
    write!(out, "</p><div class=line>{}</div>", timeline(history, &outcome.violations)?)?;
    if !outcome.violations.is_empty() {
        write!(out, "<h2>Broken promises</h2>")?;
    }
    for violation in &outcome.violations {
        write!(out, "<details open><summary><code>{}</code></summary><ul>", escaped(&violation.state))?;
        violation.faults.iter().try_for_each(|fault| write!(out, "<li>{}", escaped(fault)))?;
        let guilt = &violation.guilt;
        write!(
            out,
            "</ul><p>It is enough to lose, all else being kept (found in {} checks; <code>{}</code>):<ul>",
            guilt.checks,
            escaped(&guilt.state)
        )?;
        guilt.lost.iter().try_for_each(|lost| write!(out, "<li>{}", escaped(&lost.words)))?;
        write!(out, "</ul></details>")?;
    }
    let json = serde_json::to_string(outcome)?.replace("</", "<\\/");
    write!(out, "<script type=application/json id=outcome>{json}</script></html>")?;
    Ok(out)
}

fn timeline(history: &History, violations: &[Violation]) -> anyhow::Result<String> {
    let connections = history.events.iter().map(|event| event.connection).max().unwrap_or(0).min(ROWS_MAX);
    let (width, height) = (LEFT + (history.events.len() + 2) * EVENT, row(connections) + 2 * ROW);
    let mut out = format!("<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}'>");
    for number in 1..=connections {
        let y = row(number) + ROW / 2;
        write!(out, "<text x='4' y='{y}' font-size='12'>connection {number}</text>")?;
    }
    let lost = violations.iter().flat_map(|violation| &violation.guilt.lost);
    let guilty: HashSet<u64> = lost.map(|lost| lost.seq).collect();
    for (now, event) in history.events.iter().enumerate() {
        let x = LEFT + now * EVENT;
        match &event.what {
            Happening::Write(index) => {
                let write = &history.writes[*index];
                let colour = match write.fua {
                    _ if guilty.contains(&write.seq) => CRASH,
                    true => FUA,
                    false => WRITE,
                };
                let title = format!("{}: {} bytes at {}", write.seq, write.length, write.offset);
                // Neighbours that overlap in time get lanes of their own.
                let y = row(event.connection) + index % LANES * (LANE + 1);
                bar(&mut out, x, y, wide(history, now, write.answered), LANE, colour, &title)?;
            }
            Happening::Flush(index) => {
                let flush = &history.flushes[*index];
                let (y, title) = (row(event.connection), format!("FLUSH {}", flush.seq));
                bar(&mut out, x, y, wide(history, now, flush.answered), LANES * (LANE + 1), FLUSH, &title)?;
            }
            Happening::Mark(text) => {
                let title = format!("{}: {}", event.seq, escaped(text));
                write!(out, "<path d='M{x} 26v-8l4-4 4 4v8z' fill='{MARK}'><title>{title}</title></path>")?;
            }
            _ => {}
        }
    }
    for violation in violations {
        let (time, title) = (Named::parse(history, &violation.state)?.time, escaped(&violation.state));
        let x = LEFT + time * EVENT;
        write!(
            out,
            "<path d='M{x} 0V{height}' stroke='{CRASH}' stroke-width='1.5'><title>{title}</title></path>"
        )?;
    }
    out += "</svg>";
    Ok(out)
}

/// Where a connection's row begins; where there are very many, they share.
fn row(connection: u16) -> usize {
    TOP + usize::from(connection.max(1) - 1) % usize::from(ROWS_MAX) * ROW
}

/// From receipt to answer.
fn wide(history: &History, now: usize, answered: Option<(usize, u32)>) -> usize {
    let end = answered.map_or(history.events.len(), |(at, _)| at);
    (end - now).max(1) * EVENT
}

fn bar(
    out: &mut String,
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    colour: &str,
    title: &str,
) -> std::fmt::Result {
    let place = format!("x='{x}' y='{y}' width='{width}' height='{height}'");
    write!(out, "<rect {place} fill='{colour}' fill-opacity='.75'><title>{title}</title></rect>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}
