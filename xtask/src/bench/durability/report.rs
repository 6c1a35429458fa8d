//! What was measured, for people, for scripts and as a picture.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use super::super::figures::{Spread, short};
use super::super::machine::Machine;
use super::super::svg::{Bars, Chart};
use super::{MODES, UNIT};

/// What one measurement told; what does not apply is not there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row {
    pub(super) throughput: Option<f64>,
    pub(super) write_p50_us: Option<f64>,
    pub(super) write_p99_us: Option<f64>,
    pub(super) flush_p50_us: Option<f64>,
    pub(super) flush_p99_us: Option<f64>,
    pub(super) cpu_us_per_request: Option<f64>,
    pub(super) memory_peak_mib: Option<f64>,
}

/// One number of a [`Row`].
type Pick = fn(&Row) -> Option<f64>;

/// Every number of a [`Row`], with its name.
const METRICS: [(&str, Pick); 7] = [
    ("throughput", |row| row.throughput),
    ("write_p50_us", |row| row.write_p50_us),
    ("write_p99_us", |row| row.write_p99_us),
    ("flush_p50_us", |row| row.flush_p50_us),
    ("flush_p99_us", |row| row.flush_p99_us),
    ("cpu_us_per_request", |row| row.cpu_us_per_request),
    ("memory_peak_mib", |row| row.memory_peak_mib),
];

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    rounds: usize,
    seconds: f64,
    image_mib: u64,
    workloads: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    what: &'static str,
    throughput_unit: &'static str,
    /// By mode, one per round.
    #[serde(skip)]
    rows: BTreeMap<&'static str, Vec<Row>>,
    modes: BTreeMap<&'static str, BTreeMap<&'static str, Figure>>,
}

/// A number in its own unit, and in units of the same round's `writeback`.
#[derive(Debug, Clone, Copy, Serialize)]
struct Figure {
    value: Spread,
    relative: Option<Spread>,
}

impl Report {
    pub(super) fn new(machine: Machine, rounds: usize, seconds: f64, image_mib: u64) -> Report {
        Report { machine, rounds, seconds, image_mib, workloads: Vec::new() }
    }

    /// What follows is about this workload.
    pub(super) fn begin(&mut self, name: &'static str, what: &'static str, throughput_unit: &'static str) {
        let (rows, modes) = (BTreeMap::new(), BTreeMap::new());
        self.workloads.push(Measured { name, what, throughput_unit, rows, modes });
    }

    /// One measurement of the present workload; rounds come in order.
    pub(super) fn add(&mut self, mode: &'static str, round: usize, row: Row) {
        let workload = self.workloads.last_mut().expect("a workload has begun");
        let rows = workload.rows.entry(mode).or_default();
        assert_eq!(rows.len(), round, "each mode is measured once per round");
        rows.push(row);
        if workload.rows.values().map(Vec::len).sum::<usize>() == (round + 1) * MODES.len() {
            workload.sum_up();
        }
    }

    /// For people: a table per workload, in Markdown.
    pub(super) fn text(&self) -> String {
        let Machine { processor, cores, kernel, file_system } = &self.machine;
        let mut text = format!(
            "{processor}, {cores} cores, Linux {kernel}, {file_system}; image of {} MiB; medians of {} rounds of \
             {} s, in brackets the smallest and the largest.\n",
            self.image_mib, self.rounds, self.seconds
        );
        for workload in &self.workloads {
            workload.describe(&mut text).expect("a string takes any text");
        }
        text
    }

    /// For scripts.
    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// As a picture: everything in units of `writeback`.
    pub(super) fn svg(&self) -> String {
        let panel = |title: &'static str, metric: &'static str| {
            let groups = self.workloads.iter().filter_map(|workload| workload.bars(metric)).collect();
            Chart { title: title.to_owned(), groups }
        };
        let panels = [
            panel("throughput (more is better)", "throughput"),
            panel("latency of a write, median (less is better)", "write_p50_us"),
            panel("latency of a write, p99 (less is better)", "write_p99_us"),
            panel("latency of a FLUSH, median (less is better)", "flush_p50_us"),
        ];
        let heading = format!("Durability modes in units of {UNIT}");
        super::super::svg::draw(&heading, &MODES.map(|(mode, _)| mode), &panels)
    }
}

impl Measured {
    fn sum_up(&mut self) {
        let unit = self.rows[UNIT].clone();
        for (mode, rows) in &self.rows {
            let figure = |pick: Pick| {
                let value = Spread::of(rows.iter().filter_map(pick))?;
                let pairs = rows.iter().zip(&unit).map(|(row, unit)| (pick(row), pick(unit)));
                Some(Figure { value, relative: Spread::of_ratios(pairs) })
            };
            let figures = METRICS.iter().filter_map(|(name, pick)| Some((*name, figure(*pick)?)));
            self.modes.insert(mode, figures.collect());
        }
    }

    fn describe(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n**{}**: {}\n", self.name, self.what)?;
        let unit = self.throughput_unit;
        writeln!(
            text,
            "| mode | {unit} | × {UNIT} | write p50 µs | p99 | FLUSH p50 µs | p99 | CPU µs/request | peak MiB | can lose |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|---|---|")?;
        for (mode, loses) in MODES {
            let figures = &self.modes[mode];
            let value =
                |name: &str| figures.get(name).map_or_else(|| "–".into(), |it| short(it.value.median));
            let relative =
                figures.get("throughput").and_then(|it| it.relative).map_or_else(String::new, |it| {
                    format!("{} ({}–{})", short(it.median), short(it.min), short(it.max))
                });
            write!(text, "| {mode} | {} | {relative} |", value("throughput"))?;
            for (name, _) in &METRICS[1..] {
                write!(text, " {} |", value(name))?;
            }
            writeln!(text, " {loses} |")?;
        }
        Ok(())
    }

    /// A metric of all modes in units of `writeback`, if the workload has it.
    fn bars(&self, metric: &str) -> Option<Bars> {
        let relative =
            |(mode, _): (&str, &str)| self.modes.get(mode)?.get(metric)?.relative.map(|it| it.median);
        let values: Vec<f64> = MODES.into_iter().filter_map(relative).collect();
        (values.len() == MODES.len()).then_some(Bars { name: self.name, values })
    }
}
