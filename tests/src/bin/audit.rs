//! Audits NBD servers and prints the table. `cargo xtask audit` installs what this needs.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tests::audit::subject::{Family, SUBJECTS, Subject};
use tests::audit::table::Table;

/// Watch what NBD servers have done before they reply, under injected faults.
#[derive(Parser)]
struct Args {
    /// Whose server
    #[arg(long, value_enum, default_value = "ours")]
    server: Which,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Ours,
    Nbdkit,
    QemuNbd,
    NbdServer,
    All,
}

impl Which {
    fn covers(self, subject: &Subject) -> bool {
        match self {
            Which::Ours => subject.family == Family::Ours,
            Which::Nbdkit => subject.family == Family::Nbdkit,
            Which::QemuNbd => subject.family == Family::QemuNbd,
            Which::NbdServer => subject.family == Family::NbdServer,
            Which::All => true,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A script that panics has found something, and the table says what.
    std::panic::set_hook(Box::new(|_| {}));
    let subjects: Vec<&'static Subject> = SUBJECTS.iter().filter(|it| args.server.covers(it)).collect();
    let table = Table::of(&subjects);
    if args.json {
        println!("{:#}", table.to_json());
    } else {
        print!("{table}");
    }
    // What others do is a finding; what ours does wrong is an error.
    if table.ours_is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
