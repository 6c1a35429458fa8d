//! A server under `strace`: started for one script, spoken to, and killed in the end.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use common::proto::{CommandFlags, CommandType, TransmissionFlags, WireError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::NoFinding;
use super::subject::{Place, Subject};
use crate::client::Client;
use crate::disk::Disk;
use crate::server::Endpoint;
use crate::trace::{self, Event, Trace, What};
use crate::{wait_for, wait_until};

/// Bytes of one request where its length does not matter.
pub const BLOCK: u32 = 4096;
/// How far apart requests are, so that none is merged with another.
pub const APART: u64 = PLACE as u64;
/// The same as a length.
pub const PLACE: usize = 64 << 10;
/// Bytes of the disk where its size does not matter.
pub const DISK: usize = 8 << 20;
/// What the disk holds before anything is written.
pub const OLD: u8 = 0xa5;
/// What the server prints goes here.
const SAID: &str = "said";
/// Cookies of one connection; those of the next begin behind.
const COOKIES: u64 = 1000;

/// A server at work.
pub struct Running<'s> {
    subject: &'s Subject,
    /// What it serves.
    pub disk: Disk,
    child: Child,
    pid: Pid,
    /// Its end was seen, and its process id may be another's by now.
    ended: bool,
    endpoint: Endpoint,
    log: PathBuf,
    clients: u64,
}

impl<'s> Running<'s> {
    /// Starts the server on a file full of [`OLD`], with these faults (`strace -e inject=…`).
    pub fn start(subject: &'s Subject, inject: &[&str]) -> Result<Running<'s>> {
        Running::of(subject, DISK, inject)
    }

    /// The same with a file of that length.
    pub fn of(subject: &'s Subject, len: usize, inject: &[&str]) -> Result<Running<'s>> {
        let disk = Disk::holding(&vec![OLD; len]);
        let (log, socket) = (disk.dir().join("strace"), disk.dir().join("socket"));
        let unseen = |what: &str| NoFinding::Unseen(format!("there is no {what} here")).into_error();
        let mut words = trace::words(&log, inject).ok_or_else(|| unseen("strace"))?;
        words.push(subject.program().ok_or_else(|| unseen(subject.name))?.into());
        words.extend(subject.words(&Place { dir: disk.dir(), disk: disk.path(), socket: &socket }));
        let said = File::create(disk.dir().join(SAID))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child = command.spawn().context("strace cannot be started")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let endpoint = Endpoint::Unix(socket);
        let mut running = Running { subject, disk, child, pid, ended: false, endpoint, log, clients: 0 };
        if let Some(file) = subject.pid_file(running.disk.dir()) {
            running.pid = Pid::from_raw(wait_for("the server's process id", || {
                fs::read_to_string(&file).ok()?.trim().parse().ok()
            }));
        }
        Ok(running)
    }

    /// A new connection, as soon as the server listens.
    pub fn connect(&mut self) -> Result<Client> {
        let mut client = wait_for("the server to take a connection", || {
            match Client::try_connect(&self.endpoint, self.subject.export) {
                Err(error) if is_early(&error) => self.refusal(),
                connected => Some(connected.context("the server takes no connection")),
            }
        })?;
        self.clients += 1;
        client.cookies_from(COOKIES * self.clients);
        Ok(client)
    }

    /// What a server said that has ended instead of listening.
    fn refusal<T>(&mut self) -> Option<Result<T>> {
        let is_daemon = self.subject.pid_file(self.disk.dir()).is_some();
        let status = self.child.try_wait().ok().flatten().filter(|_| !is_daemon)?;
        self.ended = true;
        let said = fs::read_to_string(self.disk.dir().join(SAID)).unwrap_or_default();
        Some(Err(anyhow!("the server ended with {status} instead of listening: {}", said.trim())))
    }

    /// Takes the faults away, and the tracer with them.
    pub fn mend(&self) {
        trace::release(self.pid);
    }

    /// Sends SIGTERM, lets the clients go, and waits for the end; returns what happened until
    /// then and what the file holds.
    pub fn terminate(mut self, clients: Vec<Client>) -> Result<(Trace, Vec<u8>)> {
        kill(self.pid, Signal::SIGTERM)?;
        // Some servers wait for their clients, which is their right.
        drop(clients);
        let pid = self.pid;
        wait_until("the server to end after SIGTERM", || {
            let _reaped = self.child.try_wait();
            trace::tells_end(&self.said_so_far(), pid)
        });
        self.ended = true;
        Ok((Trace::parse(&self.said_so_far()), self.disk.content()))
    }

    /// The trace up to the successful reply to `cookie`, which the client has: the tracer writes
    /// its line soon after.
    pub fn trace_until(&self, cookie: u64) -> Trace {
        wait_for("the reply in the trace", || {
            let trace = Trace::parse(&self.said_so_far());
            trace.find(What::Reply(cookie, 0)).is_some().then_some(trace)
        })
    }

    /// The log of the trace, as far as it is written.
    pub fn said_so_far(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether a system call of that kind has begun.
    pub fn has_begun(&self, what: What) -> bool {
        Trace::has_begun(&self.said_so_far(), what)
    }
}

/// The server does not listen yet.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Where every connection has a process, those must go first, while their parent is known.
        let children = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = fs::read_to_string(children).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
        for pid in pids.chain([self.pid]).filter(|_| !self.ended) {
            let _may_have_ended = kill(pid, Signal::SIGKILL);
        }
        let _reaped = self.child.wait();
    }
}

/// Ends the script if the server does not offer this.
pub fn offered(client: &Client, flags: TransmissionFlags) -> Result<()> {
    if client.export.flags.contains(flags) { Ok(()) } else { Err(NoFinding::NotOffered.into_error()) }
}

/// What must be offered for a command.
pub fn flag_of(command: CommandType) -> TransmissionFlags {
    match command {
        CommandType::FLUSH => TransmissionFlags::SEND_FLUSH,
        CommandType::TRIM => TransmissionFlags::SEND_TRIM,
        CommandType::WRITE_ZEROES => TransmissionFlags::SEND_WRITE_ZEROES,
        _ => TransmissionFlags::NONE,
    }
}

/// Sends a request of one block, its data being `fill` if it has any; returns its cookie.
pub fn send(client: &mut Client, command: CommandType, flags: CommandFlags, at: u64, fill: u8) -> u64 {
    match command {
        CommandType::WRITE => client.send_write(flags, at, &[fill; BLOCK as usize]),
        CommandType::FLUSH => client.send(command, flags, 0, 0),
        _ => client.send(command, flags, at, BLOCK),
    }
}

/// Sends a request of one block; returns its cookie and what it was answered.
pub fn ask(
    client: &mut Client,
    command: CommandType,
    flags: CommandFlags,
    at: u64,
) -> Result<(u64, WireError)> {
    let cookie = send(client, command, flags, at, NEW);
    let reply = client.try_reply().with_context(|| format!("no reply to {command:?}"))?;
    ensure!(reply.cookie == cookie, "the reply to {command:?} has another request's cookie");
    Ok((cookie, reply.error))
}

/// What one block of written data is full of.
pub const NEW: u8 = 0x5a;

/// Sends a request of one block, which must succeed; returns its cookie.
pub fn accepted(client: &mut Client, command: CommandType, flags: CommandFlags, at: u64) -> Result<u64> {
    let (cookie, error) = ask(client, command, flags, at)?;
    if error != WireError::OK {
        bail!("{command:?} was answered {error:?} although nothing was wrong");
    }
    Ok(cookie)
}

/// The reply to a request, in words.
pub const REPLY: &str = "the reply";

/// Every change of `at` that the trace shows before `moment`, which is called `by`, was stable by
/// then.
pub fn stable_before(trace: &Trace, command: CommandType, at: u64, moment: Event, by: &str) -> Result<()> {
    let changes = [What::Write(at), What::DurableWrite(at), What::Fallocate(at)];
    let carried_out =
        |event: &&Event| changes.contains(&event.what) && event.succeeded && event.began < moment.began;
    let done: Vec<Event> = trace.0.iter().filter(carried_out).copied().collect();
    // A TRIM is a hint, which may be left undone.
    let nothing_to_do = command == CommandType::TRIM;
    ensure!(nothing_to_do || !done.is_empty(), "no system call had carried out the {command:?} before {by}");
    for change in done {
        ensure!(change.ended < moment.began, "the {command:?} was still being carried out at {by}");
        let stable =
            matches!(change.what, What::DurableWrite(_)) || trace.between(change, moment, What::Sync);
        ensure!(stable, "no sync came between the {command:?} and {by}");
    }
    Ok(())
}
