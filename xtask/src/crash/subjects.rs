//! Servers without a file system, under requests of several connections: those whose storage is recorded, too, by what
//! they promised in front; and ours, killed while it holds what it has acknowledged early.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_tests::crash::explorer;
use vm_tests::guest;

use super::{Due, Outcome, explore};

/// Requests of a workload.
const REQUESTS: usize = 600;
/// Requests that a server is killed among.
const MANY: usize = 20_000;
const CONNECTIONS: &str = "4";
/// Within this a server listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(command: &mut Command) -> Result<Process> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Ok(Process(child.with_context(|| format!("cannot run {:?}", command.get_program()))?))
    }

    /// Waits for its first line.
    fn says(&mut self) -> Result<()> {
        let out = self.0.stdout.as_mut().context("it was piped")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        ensure!(!line.is_empty(), "it ended before it said anything");
        Ok(())
    }

    fn ask_to_end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// Other servers, and what they are started with; the last one ignores FLUSH and FUA.
const SERVERS: [(&str, &[&str], Due); 3] = [
    ("nbdkit", &["nbdkit", "-f", "-U", "MIDDLE", "nbd", "socket=BACK", "shared=true"], Due::Clean),
    (
        "qemu-nbd --cache=writeback",
        &[
            "qemu-nbd",
            "-t",
            "-e",
            "8",
            "-k",
            "MIDDLE",
            "-f",
            "raw",
            "--cache=writeback",
            "nbd+unix:///?socket=BACK",
        ],
        Due::Clean,
    ),
    (
        "qemu-nbd --cache=unsafe",
        &[
            "qemu-nbd",
            "-t",
            "-e",
            "8",
            "-k",
            "MIDDLE",
            "-f",
            "raw",
            "--cache=unsafe",
            "nbd+unix:///?socket=BACK",
        ],
        Due::Caught,
    ),
];

pub(super) fn run(seconds: u64, seed: u64, tell: &mut dyn FnMut(&str, Due, &Outcome)) -> Result<()> {
    for (name, words, due) in SERVERS {
        let outcome = between(words, seconds, seed).context(name)?;
        tell(name, due, &outcome);
    }
    for mode in ["early-ack", "writeback", "writethrough"] {
        killed(mode, seed).context(mode)?;
        println!("nbd-server {mode}, killed: all that was promised is there");
    }
    Ok(())
}

/// Puts a server between two recorders and explores the states of its storage by what it promised.
fn between(words: &[&str], seconds: u64, seed: u64) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name).display().to_string();
    let uri = |name: &str| format!("nbd+unix:///?socket={}", at(name));
    let mut storage = Process::start(Command::new(server()?).args(["--unix", &at("storage"), "memory:1M"]))?;
    storage.says()?;
    let mut back = recorder(&uri("storage"), &at("back"), &at("back.nbdrec"))?;
    back.says()?;
    let (program, arguments) = words.split_first().context("a server has a name")?;
    let filled =
        arguments.iter().map(|word| word.replace("MIDDLE", &at("middle")).replace("BACK", &at("back")));
    let middle = Process::start(Command::new(program).args(filled))?;
    wait_for(&directory.path().join("middle"))?;
    let mut front = recorder(&uri("middle"), &at("front"), &at("front.nbdrec"))?;
    front.says()?;
    workload(&uri("front"), &at("workload"), REQUESTS, seed)?.wait_for_success()?;
    front.ask_to_end()?;
    drop(middle);
    back.ask_to_end()?;
    let how =
        format!("--front {} --budget {seconds}s --seed {seed} --violations 1 --json", at("front.nbdrec"));
    explore(&directory.path().join("back.nbdrec"), &how)
}

/// Kills our server among many requests, and looks at what is left.
fn killed(mode: &str, seed: u64) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name).display().to_string();
    File::create_new(at("image"))?.set_len(1 << 20)?;
    let mut server = Process::start(
        Command::new(server()?)
            .args([
                "--unix",
                &at("socket"),
                "--durability",
                mode,
                "--record",
                &at("log"),
                "--dirty-age",
                "3600",
            ])
            .arg(at("image")),
    )?;
    server.says()?;
    let uri = format!("nbd+unix:///?socket={}", at("socket"));
    let client = workload(&uri, &at("workload"), MANY, seed)?;
    wait_for_growth(Path::new(&at("log")), 4 << 20)?;
    drop(server);
    drop(client);
    let check = Command::new(explorer()?).args(["check", &at("log"), "--image", &at("image")]).output()?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout).trim());
    Ok(())
}

impl Process {
    fn wait_for_success(mut self) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

fn server() -> Result<std::path::PathBuf> {
    guest::host_program("nbd-server")
}

fn recorder(to: &str, listen: &str, log: &str) -> Result<Process> {
    Process::start(Command::new(explorer()?).args(["record", "--to", to, "--listen", listen, "--log", log]))
}

/// Starts a workload of random requests.
fn workload(uri: &str, text: &str, requests: usize, seed: u64) -> Result<Process> {
    let (requests, seed) = (requests.to_string(), seed.to_string());
    let out = Command::new(explorer()?).args(["generate", "--raw", &requests, "--seed", &seed]).output()?;
    std::fs::write(text, out.stdout)?;
    Process::start(Command::new(explorer()?).args([
        "workload",
        text,
        "--nbd",
        uri,
        "--connections",
        CONNECTIONS,
    ]))
}

/// Waits for a server that says nothing when it listens.
fn wait_for(socket: &Path) -> Result<()> {
    poll(|| std::os::unix::net::UnixStream::connect(socket).is_ok()).context("nobody listens")
}

fn wait_for_growth(file: &Path, to: u64) -> Result<()> {
    poll(|| file.metadata().is_ok_and(|it| it.len() >= to)).context("nothing is recorded")
}

fn poll(mut holds: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < end, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
