//! How many instructions a request takes, from its bytes to those of its reply: decoding, the layers, the
//! backend, the answer. Counted by valgrind, so that a change for the worse is seen on any machine, however
//! noisy, and compared with what `instructions.json` says.
//!
//! After a change that is meant to change them: `INSTRUCTIONS=keep cargo test -p nbd-server --test instructions`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::handshake::context::{Agreed, ReplyStyle};
use futures::executor::block_on;
use futures::future::{Either, select};
use futures::io::{AsyncRead, AsyncWrite};
use nbd_server::backend::memory::MemoryBackend;
use nbd_server::buf::{Budget, Pool};
use nbd_server::device::leaf;
use nbd_server::durability::{Clock, EarlyLimits, Mode};
use nbd_server::epoch_store;
use nbd_server::export::Export;
use nbd_server::session::{End, Memory, Progress, Stream, transmit};

/// How much worse than the baseline a path may get: compilers, C libraries and processors (how they copy)
/// differ by nearly as much.
const MARGIN: f64 = 0.15;
/// Requests that come together, as from a client with so many in flight.
const BATCH: usize = 32;
/// Batches of the shorter and of the longer run. What the process does besides is the same in both.
const SHORT: usize = 20;
const LONG: usize = 120;
/// Bytes of the disk, and of a request.
const DISK: u64 = 1 << 20;
const LEN: usize = 4096;
/// Says which path to drive, and how often.
const DRIVE: &str = "INSTRUCTIONS_DRIVE";

/// A path through the server.
#[derive(Clone, Copy)]
struct Route {
    name: &'static str,
    /// `NBD_CMD_READ` and so on.
    command: u16,
    /// Of each request.
    len: usize,
    mode: Mode,
    style: ReplyStyle,
}

const fn route(name: &'static str, command: u16, len: usize, mode: Mode, style: ReplyStyle) -> Route {
    Route { name, command, len, mode, style }
}

const ROUTES: [Route; 6] = [
    route("read", 0, LEN, Mode::Writeback, ReplyStyle::Simple),
    route("read-structured", 0, LEN, Mode::Writeback, ReplyStyle::Structured),
    route("write", 1, LEN, Mode::Writeback, ReplyStyle::Simple),
    route("write-through", 1, LEN, Mode::Writethrough, ReplyStyle::Simple),
    route("write-early", 1, LEN, Mode::EarlyAck, ReplyStyle::Simple),
    route("flush", 3, 0, Mode::Writeback, ReplyStyle::Simple),
];

#[test]
fn requests_take_no_more_instructions_than_they_did() {
    let found: BTreeMap<&str, u64> =
        ROUTES.iter().map(|route| (route.name, per_request(route.name))).collect();
    println!("instructions per request: {found:?}");
    if env::var("INSTRUCTIONS").is_ok_and(|wish| wish == "keep") {
        let text = serde_json::to_string_pretty(&found).expect("numbers can be told") + "\n";
        return fs::write(baseline(), text).expect("the baseline can be written");
    }
    let text = fs::read_to_string(baseline()).expect("there is a baseline");
    let kept: BTreeMap<&str, u64> = serde_json::from_str(&text).expect("the baseline is JSON");
    assert!(kept.keys().eq(found.keys()), "the baseline is of other paths: {kept:?}");
    let worse: Vec<String> = found
        .iter()
        .filter(|(name, now)| **now as f64 > kept[*name] as f64 * (1.0 + MARGIN))
        .map(|(name, now)| format!("{name}: {now} instructions, {} before", kept[name]))
        .collect();
    assert!(worse.is_empty(), "{worse:#?}");
}

/// Not a test: what is counted. Does nothing unless it is told to.
#[test]
fn drive() {
    let Ok(wish) = env::var(DRIVE) else { return };
    let (name, batches) = wish.split_once(' ').expect("a path and a number");
    let route = ROUTES.iter().find(|route| route.name == name).expect("a path");
    run(route, batches.parse().expect("a number"));
}

fn baseline() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.json")
}

fn per_request(name: &str) -> u64 {
    let (long, short) = (count(name, LONG), count(name, SHORT));
    (long - short) / u64::try_from((LONG - SHORT) * BATCH).expect("a small number")
}

/// Instructions of a process that drives `batches`.
fn count(name: &str, batches: usize) -> u64 {
    let own = env::current_exe().expect("a test knows its own path");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    valgrind.arg(own).args(["--exact", "drive", "--test-threads=1"]);
    let output = valgrind.env(DRIVE, format!("{name} {batches}")).output();
    let output = output.expect("valgrind can be started (cargo xtask install)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind failed: {said}");
    let line = said.lines().find(|line| line.contains("I refs:") || line.contains("I   refs:"));
    let number = line.and_then(|line| line.rsplit(':').next()).map(|number| number.trim().replace(',', ""));
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("valgrind counted nothing: {said}"))
}

/// Serves so many batches of requests to a client that takes every reply at once.
fn run(route: &Route, batches: usize) {
    let storage = leaf(MemoryBackend::new(DISK).expect("a little memory"));
    let limits = EarlyLimits::default();
    let export = Arc::new(Export::new(String::new(), storage, route.mode, limits, epoch_store::volatile()));
    let agreed = Agreed { style: route.style, contexts: Vec::new() };
    let memory = Memory { pool: Arc::new(Pool::default()), budget: Budget::new(64 << 20) };
    let mut client = Client { batch: batch(route), sent: 0, left: batches };
    let progress = Rc::new(Progress::default());
    let device = export.clone();
    let serving = pin!(transmit(&mut client, export, agreed, memory, futures::stream::pending(), progress));
    let background = pin!(device.device().background(Rc::new(NoTime)));
    let Either::Left((end, _)) = block_on(select(serving, background)) else {
        panic!("an export's own work has no end");
    };
    assert!(matches!(end, End::Disconnected), "{end}");
}

/// Nothing here takes so long that it would be waited for.
struct NoTime;

impl Clock for NoTime {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(pending())
    }
}

/// Requests for different places, and their payloads.
fn batch(route: &Route) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..BATCH as u64 {
        let (at, len) = if route.len == 0 { (0, 0) } else { (cookie * route.len as u64, route.len) };
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(route.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(u32::try_from(len).expect("a short request").to_be_bytes());
        if route.command == 1 {
            bytes.resize(bytes.len() + len, 7);
        }
    }
    bytes
}

/// Sends a batch whenever it is asked, and hangs up in the end.
struct Client {
    batch: Vec<u8>,
    sent: usize,
    left: usize,
}

impl Stream for Client {}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            return Poll::Ready(Ok(0));
        }
        let rest = &self.batch[self.sent..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.sent += len;
        if self.sent == self.batch.len() {
            (self.sent, self.left) = (0, self.left - 1);
        }
        Poll::Ready(Ok(len))
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
