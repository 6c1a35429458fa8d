//! What the server did in which order, as `strace` saw it.
//!
//! The log of `strace -f -xx` becomes a list of [`Event`]s: requests received, replies sent, and
//! operations on the disk, each with the moment it began and the moment it ended. The moments are
//! line numbers: what ended on an earlier line than another thing began was over before it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use common::command::RequestHeader;
use common::proto::REQUEST_HEADER_LEN;
use common::reply::SimpleReply;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::{Builder, Server, status};
use crate::{tool, wait_until};

/// The system calls that say something about durability, and those that faults are injected into.
const CALLS: &str = "trace=pwrite64,pwritev,pwritev2,fdatasync,fsync,fsetxattr,fallocate,sendmsg,writev,sendto,write,\
                     preadv2,read,readv,recvfrom,recvmsg";

/// A server under `strace`.
pub struct Traced {
    /// The server.
    pub server: Server,
    log: PathBuf,
}

/// Starts a server under `strace`, which may inject faults (`-e inject=…`); `None` when there is
/// no `strace`. The log is put into `dir`.
#[must_use]
pub fn start(builder: Builder, dir: &Path, inject: &[&str]) -> Option<Traced> {
    let log = dir.join("strace");
    let words = words(&log, inject)?;
    Some(Traced { server: builder.under(words).start(), log })
}

/// The command that writes the trace of the command behind it into `log`, and may inject faults;
/// `None` when there is no `strace`.
#[must_use]
pub fn words(log: &Path, inject: &[&str]) -> Option<Vec<OsString>> {
    let strace = tool::find("strace", "strace")?;
    // -D: the tracer is a grandchild, so that the process id stays the server's. -I2: it can be
    // told to let go, which it otherwise cannot when it writes to a file.
    let mut words = vec![strace.into_os_string(), "-D".into(), "-f".into(), "-xx".into(), "-s".into()];
    words.extend(["4096".into(), "-I2".into(), "-o".into(), log.into()]);
    // Only signals that are told are told as the end of a process.
    words.extend(["-e".into(), CALLS.into(), "-e".into(), "signal=SIGTERM,SIGKILL".into()]);
    words.extend(inject.iter().flat_map(|what| ["-e".into(), format!("inject={what}").into()]));
    Some(words)
}

/// Takes the tracer of a process away and with it its faults; the process runs on.
///
/// # Panics
/// When the tracer does not let go.
pub fn release(traced: Pid) {
    let tracer = || i32::try_from(status(traced, "TracerPid")).expect("process ids are small");
    kill(Pid::from_raw(tracer()), Signal::SIGTERM).expect("strace is there");
    wait_until("strace to let go", || tracer() == 0);
}

/// Whether the log tells the end of a process.
#[must_use]
pub fn tells_end(log: &str, process: Pid) -> bool {
    let process = process.to_string();
    // Its process ids are padded to five columns.
    log.lines().filter_map(|line| line.split_once(' ')).any(|(pid, said)| {
        let said = said.trim_start();
        pid == process && (said.starts_with("+++ exited with") || said.starts_with("+++ killed by"))
    })
}

impl Traced {
    /// Takes the tracer away and with it its faults; the server runs on.
    pub fn release(&self) {
        release(self.server.pid());
    }

    /// What happened up to the server's end.
    #[must_use]
    pub fn finish(self) -> Trace {
        let server = self.server.pid();
        let exit = self.server.terminate();
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        // The tracer writes its last lines after the server has ended.
        let read = || fs::read_to_string(&self.log).expect("strace writes a log");
        wait_until("the end of the trace", || tells_end(&read(), server));
        Trace::parse(&read())
    }
}

/// What an event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A request with this cookie was received; its payload may come later.
    Request(u64),
    /// A reply to this cookie was sent, with this error.
    Reply(u64, u32),
    /// Data was written at this offset.
    Write(u64),
    /// Data was written at this offset and made stable.
    DurableWrite(u64),
    /// A range was zeroed or punched.
    Fallocate(u64),
    /// Everything was made stable.
    Sync,
    /// What is on record about the file was changed, and that made stable; it says nothing about data.
    Record,
}

/// Something that happened, from one line of the log to another.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// What it was.
    pub what: What,
    /// When it began.
    pub began: usize,
    /// When it ended.
    pub ended: usize,
    /// Whether it succeeded.
    pub succeeded: bool,
}

/// Everything that happened, in order.
#[derive(Debug)]
pub struct Trace(pub Vec<Event>);

impl Trace {
    /// Reads the log of `strace -f -xx`.
    #[must_use]
    pub fn parse(log: &str) -> Trace {
        let mut events = Vec::new();
        let mut unfinished: HashMap<&str, (usize, String)> = HashMap::new();
        let mut recording: HashSet<&str> = HashSet::new();
        for (line, text) in log.lines().enumerate() {
            let Some((thread, call)) = text.trim_start().split_once(' ') else { continue };
            let call = call.trim_start();
            if let Some(beginning) = call.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread, (line, beginning.to_owned()));
            } else if let Some(end) = call.strip_prefix("<... ").and_then(|it| it.split_once(" resumed>")) {
                let (began, beginning) = unfinished.remove(thread).unwrap_or((line, String::new()));
                put(&mut events, began, line, &(beginning + end.1));
            } else {
                put(&mut events, line, line, call);
            }
            if call.starts_with("fsetxattr(") {
                recording.insert(thread);
            } else if call.contains("fsync") && events.last().is_some_and(|last| last.ended == line) {
                // The thread that changed the record makes it stable next.
                let record = recording.remove(thread);
                events.last_mut().into_iter().filter(|_| record).for_each(|last| last.what = What::Record);
            }
        }
        Trace(events)
    }

    /// Whether something of that kind has begun, according to a log that is still being written.
    #[must_use]
    pub fn has_begun(log: &str, what: What) -> bool {
        let mut begun = Vec::new();
        for line in log.lines() {
            let Some((_, call)) = line.trim_start().split_once(' ') else { continue };
            // A call is written down when it begins; its line is finished when it ends, or when
            // another call comes between.
            let call = call.trim_start().trim_end_matches(" <unfinished ...>");
            let whole = if call.contains(") = ") { call.to_owned() } else { format!("{call}) = ?") };
            put(&mut begun, 0, 0, &whole);
        }
        begun.iter().any(|event| event.what == what)
    }

    /// The first event of that kind.
    #[must_use]
    pub fn find(&self, what: What) -> Option<Event> {
        self.0.iter().copied().find(|event| event.what == what)
    }

    /// How many events are of that kind.
    #[must_use]
    pub fn count(&self, what: What) -> usize {
        self.0.iter().filter(|event| event.what == what).count()
    }

    /// The successful answer to a request: when it arrived, and when its reply set out.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn answer(&self, cookie: u64) -> (Event, Event) {
        let request = self.find(What::Request(cookie));
        let reply = self.find(What::Reply(cookie, 0));
        let found = format!("request {cookie} and its reply in {:#?}", self.0);
        (request.expect(&found), reply.expect(&found))
    }

    /// Whether something of that kind began after `after` had ended and succeeded before `before`
    /// began.
    #[must_use]
    pub fn between(&self, after: Event, before: Event, what: What) -> bool {
        let inside = |event: &&Event| event.began >= after.ended && event.ended < before.began;
        self.0.iter().filter(inside).any(|event| event.what == what && event.succeeded)
    }
}

/// Turns one whole call into events.
fn put(events: &mut Vec<Event>, began: usize, ended: usize, call: &str) {
    let Some((name, rest)) = call.split_once('(') else { return };
    let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
    // "?" is the result of a call whose process ended in it.
    let succeeded = !result.trim_start().starts_with(['-', '?']);
    let mut put = |what| events.push(Event { what, began, ended, succeeded });
    // Numbers from the end, because buffers come before: pwrite64(fd, buf, len, offset).
    let number = |from_end: usize| {
        let mut numbers = arguments.trim_end().trim_end_matches(')').rsplit(", ");
        numbers.nth(from_end).and_then(|number| number.trim().parse().ok()).unwrap_or(u64::MAX)
    };
    match name {
        "fdatasync" | "fsync" => put(What::Sync),
        "pwrite64" | "pwritev" => put(What::Write(number(0))),
        "pwritev2" if arguments.contains("RWF_DSYNC") => put(What::DurableWrite(number(1))),
        "pwritev2" => put(What::Write(number(1))),
        "fallocate" => put(What::Fallocate(number(1))),
        "read" | "readv" | "recvfrom" | "recvmsg" => {
            received(&bytes(arguments)).into_iter().for_each(|cookie| put(What::Request(cookie)));
        }
        "preadv2" | "fsetxattr" => {}
        _ => {
            for (cookie, error) in sent(&bytes(arguments)) {
                put(What::Reply(cookie, error));
            }
        }
    }
}

/// The cookies of requests in what was received. Payloads in these tests hold no magic.
fn received(bytes: &[u8]) -> Vec<u64> {
    let headers = bytes.windows(REQUEST_HEADER_LEN).filter_map(|window| window.first_chunk());
    headers.filter_map(|header| RequestHeader::decode(header).ok()).map(|header| header.cookie).collect()
}

/// The cookies and errors of replies in what was sent.
fn sent(bytes: &[u8]) -> Vec<(u64, u32)> {
    let headers = bytes.windows(16).filter_map(|window| window.first_chunk());
    let replies = headers.filter_map(|header| SimpleReply::decode(header).ok());
    replies.map(|reply| (reply.cookie, reply.error.0)).collect()
}

/// The bytes of all strings in the arguments, one after the other.
fn bytes(arguments: &str) -> Vec<u8> {
    let strings = arguments.split('"').skip(1).step_by(2);
    let hex = strings.flat_map(|string| string.split("\\x").skip(1));
    hex.filter_map(|digits| u8::from_str_radix(digits, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
7 recvfrom(9, "\x25\x60\x95\x13\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x01\xff", 16384, 0, NULL, NULL) = 29
8 pwritev2(6, [{iov_base="\x01", iov_len=1}], 1, 4096, RWF_DSYNC <unfinished ...>
7 fdatasync(6) = -1 EIO (Input/output error) (INJECTED)
8 <... pwritev2 resumed>) = 1
7 writev(9, [{iov_base="\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07", iov_len=16}], 1) = 16
7 fallocate(6, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 8192, 4096) = 0
7 pwrite64(6, "\x01\x02"..., 4096, 512) = 4096
8 fsetxattr(6, "\x75", "\x31", 1, 0) = 0
8 fsync(6 <unfinished ...>
7 fsync(6) = 0
8 <... fsync resumed>) = 0
7 +++ exited with 0 +++
8 fallocate(6, FALLOC_FL_ZERO_RANGE, 512, 64"#;

    #[test]
    fn a_log_becomes_events() {
        let trace = Trace::parse(LOG);
        let (request, reply) = trace.answer(7);
        assert!(trace.between(request, reply, What::DurableWrite(4096)));
        assert!(!trace.between(request, reply, What::Sync), "a sync that failed does not count");
        assert!(!trace.between(request, reply, What::Write(512)), "it came after the reply");
        assert!(Trace::has_begun(LOG, What::Fallocate(512)) && trace.count(What::Fallocate(512)) == 0);
        assert!(Trace::has_begun(LOG, What::DurableWrite(4096)) && !Trace::has_begun(LOG, What::Write(4096)));
        assert_eq!((trace.count(What::Fallocate(8192)), trace.count(What::Sync)), (1, 2));
        assert_eq!((trace.count(What::Record), trace.0.len()), (1, 8));
    }
}
