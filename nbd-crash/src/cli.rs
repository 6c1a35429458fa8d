//! What was typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::contract::Contract;

/// Find out what survives a crash: record what an NBD export is asked, explore every state that a crash could leave,
/// and ask a file system about each
#[derive(Debug, Parser)]
#[command(name = "nbd-crash", version, about, after_long_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stand between clients and a server, and record what passes
    Record(Record),
    /// Look at the states that a crash could leave; exits with 1 if one breaks a promise
    Explore(Explore),
    /// Compare what a crash has left in an image with what had been promised
    Check(Check),
    /// Serve one state over NBD, writable, so that it can be attached and looked at
    Serve(Serve),
    /// Print what was recorded, a line each
    Show(Show),
    /// Put a mark into a recording that is being made
    Mark(Mark),
    /// Write a recording in the format of the kernel's dm-log-writes
    Export(Convert),
    /// Read a log of the kernel's dm-log-writes
    Import(Convert),
    /// Do to a file system, or to an export, what a text says, and mark what was promised
    Workload(Workload),
    /// Print every workload of a few steps, or a random one of requests
    Generate(Generate),
}

/// `nbd-crash record`.
#[derive(Debug, Args)]
pub struct Record {
    /// The server and its export: an NBD URI
    #[arg(long, value_name = "URI")]
    pub to: String,

    /// Where clients connect to: ADDR:PORT, or the path of a Unix socket
    #[arg(long, value_name = "ADDR")]
    pub listen: String,

    /// The recording, a new file
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,

    /// Unix socket at which marks are taken, a line each
    #[arg(long, value_name = "PATH")]
    pub marks: Option<PathBuf>,
}

/// `nbd-crash explore`.
#[derive(Debug, Args)]
pub struct Explore {
    /// The recording; one that is compressed by gzip is read as it is
    pub log: PathBuf,

    /// What the device is taken to promise
    #[arg(long, value_enum, default_value = "nbd")]
    pub contract: Contract,

    /// Who judges: raw (the bytes themselves), ext4 (in memory), mount:FSTYPE (this kernel, as root, with
    /// nbd-attach), compare (whether the last two agree), or cmd:COMMAND (exits with 1 if something is wrong)
    #[arg(long, default_value = "raw", value_name = "ORACLE")]
    pub oracle: Judge,

    /// raw: judge by the promises of this recording instead, made at the same time before the server whose storage is
    /// explored
    #[arg(long, value_name = "FILE")]
    pub front: Option<PathBuf>,

    /// The export's content before the recording, if it was not all zeroes
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<PathBuf>,

    /// The unit in which writes tear, in bytes, a multiple of 512; ext4's superblock does not survive less than 4096
    #[arg(long, default_value = "4096", value_name = "BYTES", value_parser = parse_unit)]
    pub unit: u64,

    /// When to stop: a time (60s, 10m) or a number of distinct states
    #[arg(long, default_value = "60s", value_name = "BUDGET", value_parser = parse_budget)]
    pub budget: Allowance,

    /// Decides what is random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Random states at each point in a round
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub random: usize,

    /// Violations that are enough
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub violations: usize,

    /// Threads [default: one per CPU; 1 for mount, compare and cmd]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Write a report with a picture of the timeline
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `nbd-crash check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The recording
    pub log: PathBuf,

    /// What the crash has left
    #[arg(long, value_name = "FILE")]
    pub image: PathBuf,

    /// The export's content before the recording, if it was not all zeroes
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<PathBuf>,
}

/// `nbd-crash serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The recording
    pub log: PathBuf,

    /// The state's name, as explore prints it
    #[arg(long, value_name = "STATE", required_unless_present = "at")]
    pub state: Option<String>,

    /// Everything that was received until this record, in order
    #[arg(long, value_name = "SEQ", conflicts_with = "state")]
    pub at: Option<u64>,

    /// The export's content before the recording, if it was not all zeroes
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<PathBuf>,

    /// Where clients connect to: ADDR:PORT, or the path of a Unix socket
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10809")]
    pub listen: String,
}

/// `nbd-crash show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The recording
    pub log: PathBuf,

    /// Print JSON lines
    #[arg(long)]
    pub json: bool,
}

/// `nbd-crash mark`.
#[derive(Debug, Args)]
pub struct Mark {
    /// The recorder's socket
    #[arg(long, value_name = "PATH")]
    pub to: PathBuf,

    /// What to say
    pub text: String,
}

/// `nbd-crash export` and `import`.
#[derive(Debug, Args)]
pub struct Convert {
    /// What to read
    pub from: PathBuf,

    /// What to write, a new file
    pub to: PathBuf,

    /// import: bytes of the device, such as 64M; a log of the kernel's does not say
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
}

/// `nbd-crash workload`.
#[derive(Debug, Args)]
pub struct Workload {
    /// The text
    pub file: PathBuf,

    /// The directory to work in: the root of a file system on the device
    #[arg(long, value_name = "DIR", required_unless_present = "nbd")]
    pub root: Option<PathBuf>,

    /// The recorder's socket
    #[arg(long, value_name = "PATH")]
    pub marks: Option<PathBuf>,

    /// Send requests straight to this export; the text has requests then: W, WF, Z, ZF, T, TF with a block and a count,
    /// and F
    #[arg(long, value_name = "URI", conflicts_with_all = ["root", "marks"])]
    pub nbd: Option<String>,

    /// nbd: how many connections take turns
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub connections: usize,
}

/// `nbd-crash generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Steps, each with a promise after it
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub steps: usize,

    /// Instead, this many random requests to an export of 1 MiB, for --nbd
    #[arg(long, value_name = "N", conflicts_with_all = ["steps", "only"])]
    pub raw: Option<usize>,

    /// Decides what is random
    #[arg(long, default_value_t = 1, requires = "raw")]
    pub seed: u64,

    /// Print only this one, counted from 0
    #[arg(long, value_name = "N")]
    pub only: Option<usize>,
}

/// Who judges states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judge {
    /// The bytes themselves.
    Raw,
    /// ext4, in memory.
    Ext4,
    /// This kernel, by mounting a file system of that type.
    Mount(String),
    /// Both, of each other.
    Compare,
    /// A command of the user's.
    Command(String),
}

impl Judge {
    /// Whether it knows only of promises that a workload has marked.
    pub fn needs_marks(&self) -> bool {
        matches!(self, Judge::Ext4 | Judge::Mount(_) | Judge::Compare)
    }

    /// Whether there can be several at once: those in memory.
    pub fn is_in_memory(&self) -> bool {
        matches!(self, Judge::Raw | Judge::Ext4)
    }
}

impl FromStr for Judge {
    type Err = String;

    fn from_str(text: &str) -> Result<Judge, String> {
        match text.split_once(':') {
            None if text == "raw" => Ok(Judge::Raw),
            None if text == "ext4" => Ok(Judge::Ext4),
            None if text == "compare" => Ok(Judge::Compare),
            Some(("mount", fs)) if !fs.is_empty() => Ok(Judge::Mount(fs.to_owned())),
            Some(("cmd", command)) if !command.is_empty() => Ok(Judge::Command(command.to_owned())),
            _ => {
                Err("there is no such oracle; write raw, ext4, mount:FSTYPE, compare or cmd:COMMAND"
                    .to_owned())
            }
        }
    }
}

/// A budget: a time or a number.
#[derive(Debug, Clone, Copy)]
pub enum Allowance {
    /// So long.
    Time(Duration),
    /// So many.
    States(u64),
}

const EXAMPLES: &str = "\
Examples:
  nbd-server --record disk.nbdrec --marks /run/marks memory:64M & sleep 1
  nbd-attach attach nbd://localhost && mkfs.ext4 /dev/nbd0 && mount /dev/nbd0 /mnt
  nbd-crash workload ordinary.txt --root /mnt --marks /run/marks
  umount /mnt && nbd-attach detach /dev/nbd0 && kill %1
  nbd-crash explore disk.nbdrec --oracle ext4 --report crash.html
  nbd-crash explore disk.nbdrec --oracle ext4 --contract no-fua   what if the server ignored FUA?
  nbd-crash serve disk.nbdrec --state no-fua@120:-117             go there and look

The states of any server's storage, by what that server promised its clients:
  nbd-crash record --to nbd://storage --listen /run/back --log back.nbdrec &
  qemu-nbd -t -e 8 -f raw -p 10810 'nbd+unix:///?socket=/run/back' &
  nbd-crash record --to nbd://localhost:10810 --listen /run/front --log front.nbdrec &
  nbd-crash explore back.nbdrec --front front.nbdrec";

fn parse_size(text: &str) -> Result<u64, String> {
    let size = parse_size::Config::new().with_binary().parse_size(text);
    size.map_err(|error| format!("{text:?} is no size ({error}); write for example 64M"))
}

fn parse_unit(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(unit) if unit > 0 && unit % 512 == 0 => Ok(unit),
        _ => Err(format!("{text:?} is no multiple of 512")),
    }
}

fn parse_budget(text: &str) -> Result<Allowance, String> {
    let time = |number: &str, seconds: f64| {
        let number: f64 =
            number.parse().map_err(|_| format!("{text:?} is no time; write for example 60s or 10m"))?;
        Duration::try_from_secs_f64(number * seconds).map(Allowance::Time).map_err(|error| error.to_string())
    };
    match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(number), _) => time(number, 1.0),
        (_, Some(number)) => time(number, 60.0),
        _ => text
            .parse()
            .map(Allowance::States)
            .map_err(|_| format!("{text:?} is no budget; write for example 60s, 10m or 20000")),
    }
}
