//! What neighbours, logs and operators can do to a server.

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::proto::{CommandFlags, CommandType, PAYLOAD_MAX};
use nix::sys::stat::Mode;

use super::witness::Asked;
use crate::client::{Client, FUA, PLAIN, Socket};
use crate::failing_disk::{FailingDisk, HALF, Medium};
use crate::mount::{self, LoopDevice, Mount};
use crate::server::{Builder, Endpoint, Server};
use crate::slow_disk::{self, Pace, SlowDisk};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Bytes of the bad disk.
const SIZE: u64 = 64 * MIB;
/// How long an attacker waits for one thing before it looks whether it is over.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a byte drips.
const DRIP_EVERY: Duration = Duration::from_millis(100);
/// Clients that drip.
pub(super) const DRIPPING: usize = 16;
/// Descriptors of a server that soon has none left.
const DESCRIPTORS: usize = 128;

/// What is wrong beside a good client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The disk of another export answers nothing any more.
    HungFile,
    /// A block device, of which the same is true.
    HungDevice,
    /// A file's disk takes 20 ms for each operation.
    SlowFile,
    /// It is full, and written to.
    FullDisk,
    /// It fails in the kernel, and is written to.
    FailingDisk,
    /// Clients announce long WRITEs and send a byte now and then.
    DripWriter,
    /// Clients ask for long READs and take a byte now and then.
    DripReader,
    /// Clients and operators connect and say nothing.
    SilentClient,
    /// Clients have gigabytes of memory zeroed.
    HugeZeroes,
    /// Nobody reads the log, and every request is logged.
    LogUnread,
    /// Whoever read it has gone.
    LogClosed,
    /// It lies on a disk that is full.
    LogFull,
    /// Clients have taken all descriptors.
    NoDescriptors,
}

impl Trouble {
    /// All of it.
    pub const ALL: [Trouble; 13] = [
        Trouble::HungFile,
        Trouble::HungDevice,
        Trouble::SlowFile,
        Trouble::FullDisk,
        Trouble::FailingDisk,
        Trouble::DripWriter,
        Trouble::DripReader,
        Trouble::SilentClient,
        Trouble::HugeZeroes,
        Trouble::LogUnread,
        Trouble::LogClosed,
        Trouble::LogFull,
        Trouble::NoDescriptors,
    ];

    /// How the server ends after SIGTERM, where that is the same every time.
    pub(super) fn exit_code(self) -> Option<i32> {
        match self {
            // What their disks do not store is told, and what was received and takes longer than there is time.
            Trouble::HugeZeroes => None,
            Trouble::HungFile | Trouble::HungDevice | Trouble::SlowFile | Trouble::FailingDisk => None,
            // Replies that were not fetched are told, too.
            Trouble::DripReader => Some(1),
            _ => Some(0),
        }
    }

    /// Whether the end waits for disks or clients, as long as `--shutdown-timeout` lets it.
    pub(super) fn delays_the_end(self) -> bool {
        self.exit_code() != Some(0)
    }

    /// Whether a good client can be promised nothing here: nobody connects without a descriptor.
    pub(super) fn denies(self, asked: Asked) -> bool {
        self == Trouble::NoDescriptors && asked == Asked::NewClient
    }

    /// Makes what it takes; nothing where this machine lacks it.
    pub(super) fn prepare(self) -> Result<Option<Scene>> {
        let mut scene = Scene::default();
        match self {
            Trouble::HungFile | Trouble::SlowFile => {
                if !slow_disk::can_be_made() {
                    return Ok(None);
                }
                let disk = SlowDisk::make(usize::try_from(SIZE)?)?;
                scene.serve(disk.path().display());
                scene.slow = Some(disk);
            }
            Trouble::FullDisk | Trouble::FailingDisk if !mount::can_mount() => return Ok(None),
            Trouble::HungDevice => {
                if !slow_disk::can_be_made() || !mount::can_mount() {
                    return Ok(None);
                }
                let disk = SlowDisk::make(usize::try_from(SIZE)?)?;
                let device = LoopDevice::over(&disk.path())?;
                scene.serve(device.path().display());
                scene.slow = Some(disk);
                scene.held.push(Box::new(device));
            }
            Trouble::FullDisk => {
                let dir = tempfile::tempdir()?;
                let tmpfs = Mount::tmpfs(&dir.path().join("full"), MIB)?;
                let image = tmpfs.path().join("disk.img");
                File::create(&image)?.set_len(SIZE)?;
                let filled = std::fs::write(tmpfs.path().join("filler"), vec![1; usize::try_from(2 * MIB)?]);
                anyhow::ensure!(filled.is_err(), "the disk is not full");
                scene.serve(image.display());
                scene.held.push(Box::new((tmpfs, dir)));
            }
            Trouble::FailingDisk => {
                let disk = FailingDisk::make(Medium::File)?;
                scene.serve(disk.path().display());
                scene.held.push(Box::new(disk));
            }
            Trouble::HugeZeroes => scene.serve("memory:1G"),
            Trouble::LogUnread | Trouble::LogClosed => {
                scene.serve("memory:64M");
                let (path, read) = scene.pipe()?;
                scene.log_to(&path);
                match self {
                    Trouble::LogUnread => scene.held.push(Box::new(read)),
                    _ => scene.gone = Some(read),
                }
            }
            Trouble::LogFull => {
                scene.serve("memory:64M");
                scene.log_to(Path::new("/dev/full"));
            }
            Trouble::NoDescriptors => {
                scene.serve("memory:64M");
                let limited = format!("ulimit -n {DESCRIPTORS}; exec \"$@\"");
                scene.wrap = ["sh", "-c", &limited, "sh"].map(OsString::from).to_vec();
            }
            Trouble::DripWriter | Trouble::DripReader | Trouble::SilentClient => scene.serve("memory:64M"),
        }
        Ok(Some(scene))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Trouble::HungFile => "hung file",
            Trouble::HungDevice => "hung device",
            Trouble::SlowFile => "slow file",
            Trouble::FullDisk => "full disk",
            Trouble::FailingDisk => "failing disk",
            Trouble::DripWriter => "drip writers",
            Trouble::DripReader => "drip readers",
            Trouble::SilentClient => "silent clients",
            Trouble::HugeZeroes => "huge zeroes",
            Trouble::LogUnread => "log pipe unread",
            Trouble::LogClosed => "log pipe closed",
            Trouble::LogFull => "log disk full",
            Trouble::NoDescriptors => "no descriptors",
        })
    }
}

/// What a trouble takes.
pub(super) struct Scene {
    /// Names and what they serve.
    pub(super) exports: Vec<(String, String)>,
    pub(super) log_is_read: bool,
    args: Vec<String>,
    wrap: Vec<OsString>,
    admin: PathBuf,
    slow: Option<SlowDisk>,
    /// The end of the log's pipe that is closed when the trouble begins.
    gone: Option<File>,
    held: Vec<Box<dyn Any + Send>>,
}

impl Default for Scene {
    fn default() -> Scene {
        Scene {
            exports: Vec::new(),
            log_is_read: true,
            args: Vec::new(),
            wrap: Vec::new(),
            admin: PathBuf::new(),
            slow: None,
            gone: None,
            held: Vec::new(),
        }
    }
}

impl Scene {
    fn serve(&mut self, what: impl fmt::Display) {
        self.exports.push(("bad".to_owned(), what.to_string()));
    }

    /// A named pipe and its reading end.
    fn pipe(&mut self) -> Result<(PathBuf, File)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("log");
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let nonblocking = nix::libc::O_NONBLOCK;
        let read = OpenOptions::new().read(true).custom_flags(nonblocking).open(&path).context("a pipe")?;
        self.held.push(Box::new(dir));
        Ok((path, read))
    }

    /// Has every request logged there.
    fn log_to(&mut self, path: &Path) {
        self.log_is_read = false;
        self.args.extend(["-v".to_owned(), "-v".to_owned()]);
        let redirected = format!("exec \"$@\" 2>{}", path.display());
        self.wrap = ["sh", "-c", &redirected, "sh"].map(OsString::from).to_vec();
    }

    /// Gives the server what the trouble takes.
    pub(super) fn dress(&mut self, builder: Builder, dir: &Path) -> Builder {
        self.admin = dir.join("admin");
        let state = dir.join("state").display().to_string();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        builder.under(self.wrap.clone()).args(&["--state-dir", &state]).args(&args)
    }

    /// Begins, and returns once it has begun.
    pub(super) fn begin(&mut self, trouble: Trouble, server: &Server) -> Result<Attack> {
        let mut attack =
            Attack { endpoint: server.endpoint().clone(), stop: Arc::default(), threads: Vec::new() };
        match trouble {
            Trouble::HungFile | Trouble::HungDevice => {
                let disk = self.slow.as_ref().context("there is a disk")?;
                disk.set(Pace::Hung);
                (0..4).for_each(|number| attack.spawn(move |it| it.ask_and_wait(number)));
                (0..8).for_each(|_| attack.spawn(Attacker::write_much));
                attack.spawn(|it| it.stay(64));
                crate::wait_until("the disk to hang", || disk.hung() > 0);
            }
            Trouble::SlowFile => {
                let disk = self.slow.as_ref().context("there is a disk")?;
                disk.set(Pace::Slow(Duration::from_millis(20)));
                (0..4).for_each(|_| attack.spawn(|it| it.write_batches(0)));
            }
            Trouble::FullDisk => (0..2).for_each(|_| attack.spawn(|it| it.write_batches(0))),
            Trouble::FailingDisk => (0..2).for_each(|_| attack.spawn(|it| it.write_batches(HALF))),
            Trouble::DripWriter => attack.spawn(Attacker::drip_writes),
            Trouble::DripReader => attack.spawn(Attacker::drip_reads),
            Trouble::SilentClient => {
                let admin = self.admin.clone();
                attack.spawn(move |it| it.say_nothing(&admin));
            }
            Trouble::HugeZeroes => (0..2).for_each(|_| attack.spawn(Attacker::zero_much)),
            Trouble::LogUnread | Trouble::LogClosed | Trouble::LogFull => {
                self.gone = None;
                (0..2).for_each(|_| attack.spawn(|it| it.write_batches(0)));
            }
            Trouble::NoDescriptors => {
                attack.spawn(|it| it.stay(2 * DESCRIPTORS));
                let _said = server.logged("cannot accept");
            }
        }
        Ok(attack)
    }

    /// Lets go of whoever waits for its disk.
    pub(super) fn end(&mut self) {
        if let Some(disk) = &self.slow {
            disk.set(Pace::Quick);
        }
    }
}

/// Attackers, who stop when this is dropped.
pub(super) struct Attack {
    endpoint: Endpoint,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Attack {
    /// Clients that drip on `bad`, reading or writing by halves.
    pub(super) fn dripping(endpoint: &Endpoint) -> Attack {
        let mut attack = Attack { endpoint: endpoint.clone(), stop: Arc::default(), threads: Vec::new() };
        attack.spawn(Attacker::drip_writes);
        attack.spawn(Attacker::drip_reads);
        attack
    }

    fn spawn(&mut self, work: impl FnOnce(&Attacker) -> Result<()> + Send + 'static) {
        let attacker = Attacker { endpoint: self.endpoint.clone(), stop: self.stop.clone() };
        // Whatever the server does to it is right.
        self.threads.push(thread::spawn(move || drop(work(&attacker))));
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

struct Attacker {
    endpoint: Endpoint,
    stop: Arc<AtomicBool>,
}

impl Attacker {
    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    fn connect(&self) -> Result<Client> {
        let client = Client::try_connect(&self.endpoint, "bad")?;
        client.socket.patience(PATIENCE)?;
        Ok(client)
    }

    /// Sends all of it, if the server ever takes it.
    fn push(&self, socket: &mut Socket, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match socket.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if is_timeout(&error) && self.goes_on() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receives so much, if it ever comes.
    fn pull(&self, socket: &mut Socket, mut bytes: usize) -> Result<()> {
        let mut received = [0; 4096];
        while bytes > 0 {
            let part = bytes.min(received.len());
            match socket.read(&mut received[..part]) {
                Ok(0) => bail!("the server has closed"),
                Ok(len) => bytes -= len,
                Err(error) if is_timeout(&error) && self.goes_on() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until it is over.
    fn wait(&self, socket: &mut Socket) -> Result<()> {
        self.pull(socket, usize::MAX)
    }

    /// Everything that a client can ask of a disk.
    fn ask_and_wait(&self, number: u64) -> Result<()> {
        let mut client = self.connect()?;
        let mut out = Vec::new();
        for n in 0..8 {
            client.encode(&mut out, CommandType::READ, PLAIN, (number * 8 + n) * MIB / 4, 4096);
        }
        for _ in 0..2 {
            // Pages that somebody else waits for are in the cache, and hold nothing yet.
            client.encode(&mut out, CommandType::READ, PLAIN, 32 * MIB, 1 << 20);
        }
        for (command, flags, len) in [
            (CommandType::WRITE, PLAIN, BLOCK),
            (CommandType::WRITE, FUA, BLOCK),
            (CommandType::WRITE, PLAIN, BLOCK * 128),
            (CommandType::FLUSH, PLAIN, 0),
            (CommandType::TRIM, PLAIN, BLOCK),
            (CommandType::WRITE_ZEROES, PLAIN, BLOCK),
        ] {
            for n in 0..4 {
                let at = if len == 0 { 0 } else { 48 * MIB + number * MIB + n * 4096 };
                client.encode(&mut out, command, flags, at, u32::try_from(len)?);
                if command == CommandType::WRITE {
                    out.resize(out.len() + len, 1);
                }
            }
        }
        self.push(&mut client.socket, &out)?;
        self.wait(&mut client.socket)
    }

    /// As much memory as one connection may have.
    fn write_much(&self) -> Result<()> {
        let mut client = self.connect()?;
        for _ in 0..2 {
            let mut out = Vec::new();
            client.encode(&mut out, CommandType::WRITE, PLAIN, 0, PAYLOAD_MAX);
            out.resize(out.len() + usize::try_from(PAYLOAD_MAX)?, 1);
            self.push(&mut client.socket, &out)?;
        }
        self.wait(&mut client.socket)
    }

    /// Connections that ask one thing each and stay.
    fn stay(&self, count: usize) -> Result<()> {
        let mut held = Vec::new();
        for _ in 0..count {
            // Those beyond are never answered.
            let mut socket = Socket::connect(&self.endpoint)?;
            socket.patience(PATIENCE)?;
            if held.len() < 64
                && let Ok(mut client) = Client::over(Socket::connect(&self.endpoint)?, &self.endpoint, "bad")
            {
                client.socket.patience(PATIENCE)?;
                let mut out = Vec::new();
                client.encode(&mut out, CommandType::FLUSH, PLAIN, 0, 0);
                self.push(&mut client.socket, &out)?;
                std::mem::swap(&mut socket, &mut client.socket);
            }
            held.push(socket);
        }
        self.wait(held.last_mut().context("there are some")?)
    }

    /// Writes and syncs as fast as they are answered, in whatever way.
    fn write_batches(&self, from: u64) -> Result<()> {
        let mut client = self.connect()?;
        loop {
            let mut out = Vec::new();
            let mut replies = 0;
            for (count, flags) in [(24, PLAIN), (4, FUA)] {
                for n in 0..count {
                    let at = from + n * 8192;
                    client.encode(&mut out, CommandType::WRITE, flags, at, u32::try_from(BLOCK)?);
                    out.resize(out.len() + BLOCK, 1);
                    replies += 1;
                }
            }
            client.encode(&mut out, CommandType::FLUSH, PLAIN, 0, 0);
            client.encode(&mut out, CommandType::TRIM, PLAIN, from, 4096);
            replies += 2;
            self.push(&mut client.socket, &out)?;
            self.pull(&mut client.socket, replies * 16)?;
        }
    }

    /// Has all of the memory zeroed again and again.
    fn zero_much(&self) -> Result<()> {
        let mut client = self.connect()?;
        let len = u32::try_from(1024 * MIB)?;
        loop {
            let mut out = Vec::new();
            client.encode(&mut out, CommandType::WRITE_ZEROES, CommandFlags::NO_HOLE, 0, len);
            client.encode(&mut out, CommandType::TRIM, PLAIN, 0, len);
            client.encode(&mut out, CommandType::WRITE_ZEROES, PLAIN, 0, len);
            self.push(&mut client.socket, &out)?;
            self.pull(&mut client.socket, 3 * 16)?;
        }
    }

    /// Many who never finish a WRITE.
    fn drip_writes(&self) -> Result<()> {
        self.drip(
            |client| {
                let mut out = Vec::new();
                client.encode(&mut out, CommandType::WRITE, PLAIN, 0, PAYLOAD_MAX);
                out
            },
            |socket| socket.write(&[1]).is_ok(),
        )
    }

    /// Many who never finish to read a reply.
    fn drip_reads(&self) -> Result<()> {
        self.drip(
            |client| {
                let mut out = Vec::new();
                for _ in 0..8 {
                    client.encode(&mut out, CommandType::READ, PLAIN, 0, PAYLOAD_MAX);
                }
                out
            },
            |socket| match socket.read(&mut [0]) {
                Ok(len) => len == 1,
                Err(error) => is_timeout(&error),
            },
        )
    }

    /// Clients that begin with something and then have a byte move now and then; who is cut comes again.
    fn drip(
        &self,
        begin: impl Fn(&mut Client) -> Vec<u8>,
        mut drip: impl FnMut(&mut Socket) -> bool,
    ) -> Result<()> {
        let mut sockets: Vec<Socket> = Vec::new();
        while self.goes_on() {
            while sockets.len() < DRIPPING {
                let Ok(mut client) = self.connect() else { break };
                let out = begin(&mut client);
                if client.socket.write_all(&out).is_ok() {
                    client.socket.patience(Duration::from_millis(1))?;
                    sockets.push(client.socket);
                }
            }
            sockets.retain_mut(&mut drip);
            thread::sleep(DRIP_EVERY);
        }
        Ok(())
    }

    /// Clients and operators who say nothing, half a thing, or listen to nothing.
    fn say_nothing(&self, admin: &Path) -> Result<()> {
        let mut operators: Vec<UnixStream> =
            (0..32).map(|_| UnixStream::connect(admin)).collect::<Result<_, _>>()?;
        for operator in operators.iter_mut().take(16) {
            operator.write_all(b"{\"command\":")?;
        }
        while self.goes_on() {
            let mut silent: Vec<Socket> =
                (0..200).map(|_| Socket::connect(&self.endpoint)).collect::<Result<_, _>>()?;
            for socket in silent.iter_mut().take(100) {
                socket.write_all(&[0, 0, 0, 3, b'I', b'H'])?;
                socket.patience(PATIENCE)?;
            }
            while self.goes_on()
                && silent[0].read(&mut [0; 64]).map_or_else(|error| is_timeout(&error), |len| len > 0)
            {
            }
        }
        Ok(())
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
