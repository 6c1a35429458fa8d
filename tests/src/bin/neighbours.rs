//! Puts a server into trouble after trouble, and tells how long a good client waits meanwhile. Needs root;
//! `cargo xtask neighbours` builds what this needs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tests::neighbours::drip::{LENGTHS, Outcome};
use tests::neighbours::table::Table;
use tests::neighbours::{Outcome as Cell, Trouble};

/// What a good client may wait for one answer.
const LIMIT: Duration = Duration::from_secs(1);
/// How much longer its p99 may be among clients that drip.
const SLOWER_MAX: f64 = 3.0;

/// Put a server into trouble after trouble, and tell how long a good client waits meanwhile.
#[derive(Parser)]
struct Args {
    /// How long all of it takes
    #[arg(long, value_name = "N", default_value = "5")]
    minutes: u64,
    /// Only this trouble: clients that send and read a byte now and then, as long as all others together
    #[arg(long)]
    drip: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let lasting = Duration::from_secs(args.minutes * 60);
    let faults = if args.drip { drip(lasting)? } else { matrix(lasting)? };
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One trouble after the other, so that each has the machine to itself.
fn matrix(lasting: Duration) -> Result<Vec<String>> {
    let each = lasting / u32::try_from(Trouble::ALL.len())?;
    let mut outcomes = Vec::new();
    for trouble in Trouble::ALL {
        eprintln!("{trouble}, {} s", each.as_secs());
        outcomes.extend(Cell::of(trouble, each)?);
    }
    let table = Table { outcomes: &outcomes, limit: LIMIT };
    print!("{table}");
    Ok(table.faults())
}

fn drip(lasting: Duration) -> Result<Vec<String>> {
    let outcome = Outcome::of(lasting)?;
    let mut faults = Vec::new();
    println!(
        "| bytes | p50 alone, µs | p99 | p99.9 | requests | p50 among clients that drip, µs | p99 | p99.9 | requests |"
    );
    println!("|{}", "---|".repeat(9));
    for (len, (alone, among)) in LENGTHS.iter().zip(outcome.alone.iter().zip(&outcome.among)) {
        print!("| {len} |");
        for latencies in [alone, among] {
            let [p50, p99, p999] = [500, 990, 999].map(|part| latencies.per_mille(part).as_micros());
            print!(" {p50} | {p99} | {p999} | {} |", latencies.count());
        }
        println!();
        let [alone, among] = [alone, among].map(|latencies| latencies.per_mille(990));
        if among.as_secs_f64() > alone.as_secs_f64() * SLOWER_MAX {
            faults.push(format!(
                "{len} bytes: p99 is {among:.1?} among clients that drip, and {alone:.1?} alone"
            ));
        }
    }
    Ok(faults)
}
