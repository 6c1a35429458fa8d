//! Explores what servers could leave of what they promised, a line of JSON for each. `cargo xtask crash` installs what
//! this needs.

use clap::Parser;
use serde_json::{Value, json};
use tests::crash::subjects::{SUBJECTS, between, killed};
use tests::tool;

/// Explore the storage of NBD servers by what they promised, and what a killed server has left.
#[derive(Parser)]
struct Args {
    /// Seconds for each exploration
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides what is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Requests of a workload.
const REQUESTS: usize = 600;

fn main() {
    let args = Args::parse();
    for subject in &SUBJECTS {
        let (name, package) = subject.program;
        let Some(program) = tool::find(name, package) else { continue };
        let (budget, seed) = (format!("{}s", args.seconds), args.seed.to_string());
        let how = ["--budget", &budget, "--seed", &seed, "--violations", "1", "--json"];
        let explored = between(&program, subject, REQUESTS, args.seed, &how);
        let outcome: Value = serde_json::from_str(&explored.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", subject.name, explored.stderr));
        println!("{}", json!({"subject": subject.name, "is_honest": subject.is_honest, "outcome": outcome}));
    }
    for mode in ["early-ack", "writeback", "writethrough"] {
        let left = killed(mode, args.seed);
        let kept = left.status.success();
        println!("{}", json!({"killed": mode, "kept": kept, "said": left.stdout}));
    }
}
