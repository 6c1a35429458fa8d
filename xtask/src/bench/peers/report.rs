//! What was measured, for people, for scripts and as a picture.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use super::super::figures::{Spread, short};
use super::super::machine::Machine;
use super::super::svg::{Bars, Chart};
use super::subject::{ALL, LIMIT, SUBJECTS};

/// What one measurement told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) rate: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) cpu_us: f64,
    pub(super) memory_mib: f64,
}

type Pick = fn(&Row) -> f64;

const RATE: Pick = |row| row.rate;
const CPU: Pick = |row| row.cpu_us;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    rounds: usize,
    seconds: f64,
    cells: Vec<Cell>,
}

/// One load, on one storage, over one transport.
#[derive(Debug, Serialize)]
struct Cell {
    place: String,
    load: &'static str,
    rate_unit: &'static str,
    /// Who is measured.
    #[serde(skip)]
    of: &'static [&'static str],
    /// By subject, one per round.
    #[serde(skip)]
    rows: BTreeMap<&'static str, Vec<Row>>,
    subjects: BTreeMap<&'static str, Figures>,
    /// Ours in units of the best peer of the same round.
    rate_ratio: Option<Spread>,
    cpu_ratio: Option<Spread>,
    /// The same in units of what the kernel costs.
    cpu_ratio_to_bare: Option<Spread>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Figures {
    rate: Spread,
    p50_us: Spread,
    p99_us: Spread,
    cpu_us_per_request: Spread,
    memory_peak_mib: Spread,
}

impl Report {
    pub(super) fn new(machine: Machine, rounds: usize, seconds: f64) -> Report {
        Report { machine, rounds, seconds, cells: Vec::new() }
    }

    /// What follows is about this cell.
    pub(super) fn begin(
        &mut self,
        place: &str,
        load: &'static str,
        rate_unit: &'static str,
        of: &'static [&'static str],
    ) {
        let (rows, subjects) = (BTreeMap::new(), BTreeMap::new());
        let place = place.to_owned();
        self.cells.push(Cell {
            place,
            load,
            rate_unit,
            of,
            rows,
            subjects,
            rate_ratio: None,
            cpu_ratio: None,
            cpu_ratio_to_bare: None,
        });
    }

    /// One measurement of the present cell; rounds come in order.
    pub(super) fn add(&mut self, subject: &'static str, row: Row) {
        let cell = self.cells.last_mut().expect("a cell has begun");
        cell.rows.entry(subject).or_default().push(row);
        if cell.rows.values().map(Vec::len).sum::<usize>() == self.rounds * cell.of.len() {
            cell.sum_up();
        }
    }

    /// For people: a table per place, in Markdown.
    pub(super) fn text(&self) -> String {
        let Machine { processor, cores, kernel, file_system } = &self.machine;
        let mut text = format!(
            "{processor}, {cores} cores, Linux {kernel}, disk: {file_system}; medians of {} rounds of {} s. Ratios \
             are of ours to the best peer of the same round, in brackets the smallest and the largest.\n",
            self.rounds, self.seconds
        );
        let mut place = "";
        for cell in &self.cells {
            if cell.place != place {
                place = &cell.place;
                cell.head(&mut text).expect("a string takes any text");
            }
            cell.describe(&mut text).expect("a string takes any text");
        }
        for (one, many) in self.pairs() {
            text += &growth(one, many).unwrap_or_default();
        }
        text
    }

    /// What one connection costs, and sixty-four.
    fn pairs(&self) -> impl Iterator<Item = (&Cell, &Cell)> {
        let of = |load: &'static str| self.cells.iter().filter(move |cell| cell.load == load);
        of("read-32").flat_map(move |one| {
            of("read-32x64").filter(|many| many.place == one.place).map(move |many| (one, many))
        })
    }

    /// For scripts.
    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// As a picture: everything in units of the best peer.
    pub(super) fn svg(&self) -> String {
        let mut places: Vec<&str> = self.cells.iter().map(|cell| &cell.place[..]).collect();
        places.dedup();
        let panel = |place: &str, what: &str, pick: fn(&Figures) -> f64, best: fn(f64, f64) -> f64| Chart {
            title: format!("{place}: {what}"),
            groups: self.cells.iter().filter(|it| it.place == place).map(|it| it.bars(pick, best)).collect(),
        };
        let panels: Vec<Chart> = places
            .iter()
            .flat_map(|place| {
                let rate = panel(place, "throughput (more is better)", |it| it.rate.median, f64::max);
                let cpu = |it: &Figures| it.cpu_us_per_request.median;
                [rate, panel(place, "server CPU per request (less is better)", cpu, f64::min)]
            })
            .collect();
        super::super::svg::draw("NBD servers in units of the best of the others", &SUBJECTS, &panels)
    }
}

/// What each connection more costs the server of ours, in a sentence.
fn growth(one: &Cell, many: &Cell) -> Option<String> {
    let ours = |cell: &Cell| cell.subjects.get(SUBJECTS[0]).copied();
    let (one_figures, many_figures) = (ours(one)?, ours(many)?);
    let cpu = many_figures.cpu_us_per_request.median / one_figures.cpu_us_per_request.median;
    let memory = (many_figures.memory_peak_mib.median - one_figures.memory_peak_mib.median) / 63.0;
    Some(format!(
        "\n{}: from 1 to 64 connections with 32 requests in flight each, ours takes {} times the CPU per request \
         and {} MiB per connection more.\n",
        one.place,
        short(cpu),
        short(memory)
    ))
}

impl Cell {
    fn sum_up(&mut self) {
        for (subject, rows) in &self.rows {
            let spread = |pick: Pick| Spread::of(rows.iter().map(pick)).expect("there was a round");
            let figures = Figures {
                rate: spread(RATE),
                p50_us: spread(|row| row.p50_us),
                p99_us: spread(|row| row.p99_us),
                cpu_us_per_request: spread(CPU),
                memory_peak_mib: spread(|row| row.memory_mib),
            };
            self.subjects.insert(subject, figures);
        }
        self.rate_ratio = self.ratio(&SUBJECTS[1..], RATE, f64::max);
        self.cpu_ratio = self.ratio(&SUBJECTS[1..], CPU, f64::min);
        self.cpu_ratio_to_bare = self.ratio(&[LIMIT], CPU, f64::min);
    }

    /// Ours in units of the best of these of the same round.
    fn ratio(&self, peers: &[&str], pick: Pick, best: fn(f64, f64) -> f64) -> Option<Spread> {
        let pairs = self.rows[SUBJECTS[0]].iter().enumerate().map(|(round, row)| {
            let there = peers.iter().filter_map(|peer| self.rows.get(peer));
            let best = there.map(|rows| pick(&rows[round])).reduce(best);
            (Some(pick(row)), best)
        });
        Spread::of_ratios(pairs)
    }

    fn head(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n**{}**\n", self.place)?;
        write!(text, "| load |")?;
        ALL.iter().try_for_each(|subject| write!(text, " {subject} |"))?;
        writeln!(text, " × best peer | × bare |")?;
        writeln!(text, "|---|{}---|---|", "---|".repeat(ALL.len()))
    }

    /// How much, for how much processor time, how fast and in how much memory.
    fn describe(&self, text: &mut String) -> std::fmt::Result {
        self.line(text, self.rate_unit, [self.rate_ratio, None], |it| short(it.rate.median))?;
        let cpu = |it: &Figures| short(it.cpu_us_per_request.median);
        self.line(text, "CPU µs/request", [self.cpu_ratio, self.cpu_ratio_to_bare], cpu)?;
        let latency = |it: &Figures| format!("{} / {}", short(it.p50_us.median), short(it.p99_us.median));
        self.line(text, "p50 / p99 µs", [None; 2], latency)?;
        self.line(text, "peak MiB", [None; 2], |it| short(it.memory_peak_mib.median))
    }

    fn line(
        &self,
        text: &mut String,
        unit: &str,
        ratios: [Option<Spread>; 2],
        shown: impl Fn(&Figures) -> String,
    ) -> std::fmt::Result {
        write!(text, "| {} {unit} |", self.load)?;
        for subject in ALL {
            let figures = self.subjects.get(subject);
            write!(text, " {} |", figures.map_or("–".to_owned(), &shown))?;
        }
        for ratio in ratios {
            match ratio {
                Some(it) => write!(text, " {} ({}–{}) |", short(it.median), short(it.min), short(it.max)),
                None => write!(text, " |"),
            }?;
        }
        writeln!(text)
    }

    fn bars(&self, pick: fn(&Figures) -> f64, best: fn(f64, f64) -> f64) -> Bars {
        let value = |subject: &&'static str| self.subjects.get(subject).map(pick);
        let unit = SUBJECTS[1..].iter().filter_map(value).reduce(best).unwrap_or(1.0);
        let values = SUBJECTS.iter().map(|it| value(it).unwrap_or(0.0) / unit).collect();
        Bars { name: self.load, values }
    }
}
