//! The commands of the binary.

mod convert;
mod explore;
mod record;
mod show;

use std::fs;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};

use crate::cli::{Check, Command, Generate, Mark, Workload};
use crate::history::History;
use crate::image::{Base, Image};
use crate::oracle::Oracle;
use crate::oracle::raw::RawOracle;
use crate::workload::generate;
use crate::workload::operation;
use crate::workload::raw;
use crate::workload::run::{self, Marker};

/// Blocks of 4 KiB that a random workload of requests writes to: few enough that it overwrites itself.
const RAW_BLOCKS: u64 = 256;

/// Does what was typed.
///
/// # Errors
/// Where it cannot be done; a promise that is found broken is an exit code.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Record(record) => record::run(&record),
        Command::Explore(explore) => explore::run(&explore),
        Command::Check(check) => compare(&check),
        Command::Mark(mark) => send(&mark),
        Command::Workload(workload) => carry_out(&workload),
        Command::Generate(generate) => print(&generate),
        Command::Serve(serve) => show::serve(&serve),
        Command::Show(show) => show::run(&show),
        Command::Export(convert) => convert::export(&convert),
        Command::Import(convert) => convert::import(&convert),
    }
}

/// A recording; whoever asks for it is told if it may go on, or was cut short.
fn open(path: &Path) -> anyhow::Result<Arc<History>> {
    let history = History::open(path)?;
    if !history.whole {
        logging::complain("nbd-crash", "the recording has no end: the recorder was killed, or still runs");
    }
    Ok(Arc::new(history))
}

/// The content before a recording.
fn base(path: Option<&Path>) -> anyhow::Result<Base> {
    match path {
        Some(path) => Base::open(path).with_context(|| format!("cannot open {}", path.display())),
        None => Ok(Base::default()),
    }
}

fn compare(check: &Check) -> anyhow::Result<ExitCode> {
    let history = open(&check.log)?;
    let before = base(check.base.as_deref())?;
    let left = Base::open(&check.image).with_context(|| format!("cannot open {}", check.image.display()))?;
    let left = Image::left(left, &before, history.header.size).context("cannot read the image")?;
    let mut oracle = RawOracle::new(history.clone(), history.clone(), before);
    let faults = oracle.judge(history.events.len(), &Arc::new(left))?;
    let image = check.image.display();
    if faults.is_empty() {
        logging::print(format!("{image}: all that was promised is there\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    logging::print(format!("{}\n{image}: promises were broken\n", faults.join("\n")))?;
    Ok(ExitCode::from(1))
}

fn send(mark: &Mark) -> anyhow::Result<ExitCode> {
    let path = &mark.to;
    let stream = UnixStream::connect(path).with_context(|| format!("cannot reach {}", path.display()))?;
    logging::print(format!("{}\n", recording::send_mark(&mut BufReader::new(stream), &mark.text)?))?;
    Ok(ExitCode::SUCCESS)
}

fn carry_out(workload: &Workload) -> anyhow::Result<ExitCode> {
    let shown = workload.file.display();
    let text = fs::read_to_string(&workload.file).with_context(|| format!("cannot read {shown}"))?;
    match (&workload.nbd, &workload.root) {
        (Some(uri), _) => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            let lines = lines.map(str::parse).collect::<anyhow::Result<Vec<raw::Line>>>();
            let lines = lines.with_context(|| format!("{shown}"))?;
            let connections = workload.connections.clamp(1, raw::CONNECTIONS_MAX);
            raw::run(&lines, &uri.parse().with_context(|| uri.clone())?, connections)?;
        }
        (None, Some(root)) => {
            let operations = operation::parse(&text).with_context(|| format!("{shown}"))?;
            run::run(&operations, root, &mut Marker::new(workload.marks.as_deref())?)?;
        }
        (None, None) => unreachable!("one of them was typed"),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(generate: &Generate) -> anyhow::Result<ExitCode> {
    if let Some(count) = generate.raw {
        let lines = raw::random(count, RAW_BLOCKS, generate.seed).into_iter().map(|line| format!("{line}\n"));
        logging::print(lines.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!((1..=3).contains(&generate.steps), "workloads have one to three steps");
    let all = generate::all(generate.steps);
    let wanted = |number: &usize| generate.only.is_none_or(|only| only == *number);
    let mut out = String::new();
    for (number, workload) in all.iter().enumerate().filter(|(number, _)| wanted(number)) {
        out += &format!("# {number} of {}\n", all.len());
        workload.iter().for_each(|operation| out += &format!("{operation}\n"));
    }
    logging::print(out)?;
    Ok(ExitCode::SUCCESS)
}
