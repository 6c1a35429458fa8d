//! The good client: it asks one thing after the other, and notes how long each took.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::proto::{CommandFlags, CommandType, WireError};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::client::{Client, FUA, PLAIN};
use crate::disk::{Disk, pattern};
use crate::operator::Operator;
use crate::server::{Endpoint, Server};

/// What is called a hang.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Bytes of the good disk: a MiB each for what is written short, long and durably, trimmed, and read from the disk.
pub(super) const SIZE: u64 = 8 * MIB;
const SHORT: u64 = 0;
const DURABLE: u64 = MIB;
const TRIMMED: u64 = 2 * MIB;
const LONG: u64 = 4 * MIB;
const COLD: u64 = 6 * MIB;

/// What a good client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Asked {
    /// READ of 4 KiB that the page cache has.
    Read,
    /// READ of 4 KiB that it has not.
    ColdRead,
    /// READ of 1 MiB.
    LongRead,
    /// WRITE of 4 KiB.
    Write,
    /// WRITE of 1 MiB.
    LongWrite,
    /// FLUSH.
    Flush,
    /// WRITE of 4 KiB with FUA.
    Fua,
    /// TRIM of 4 KiB.
    Trim,
    /// A connection, a handshake and a READ.
    NewClient,
    /// What `nbd-server ctl list` asks.
    List,
}

/// All of it, in the order of a round.
pub const ASKED: [Asked; 10] = [
    Asked::Write,
    Asked::Read,
    Asked::LongWrite,
    Asked::LongRead,
    Asked::Flush,
    Asked::ColdRead,
    Asked::Fua,
    Asked::Trim,
    Asked::NewClient,
    Asked::List,
];

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Asked::Read => "READ",
            Asked::ColdRead => "READ, cold",
            Asked::LongRead => "READ 1 MiB",
            Asked::Write => "WRITE",
            Asked::LongWrite => "WRITE 1 MiB",
            Asked::Flush => "FLUSH",
            Asked::Fua => "FUA",
            Asked::Trim => "TRIM",
            Asked::NewClient => "new client",
            Asked::List => "ctl list",
        })
    }
}

/// The worst waits of a client.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    worst: [Duration; ASKED.len()],
    /// How often everything was asked.
    pub rounds: u32,
}

impl Waits {
    /// The worst wait for this.
    #[must_use]
    pub fn worst(&self, asked: Asked) -> Duration {
        self.worst[asked as usize]
    }

    fn note(&mut self, asked: Asked, wait: Duration) {
        let worst = &mut self.worst[asked as usize];
        *worst = wait.max(*worst);
    }
}

/// A client of the export `good` on two connections, and an operator.
pub(super) struct Witness {
    endpoint: Endpoint,
    admin: PathBuf,
    file: File,
    clients: Vec<Client>,
    round: u64,
    /// What the disk must hold.
    model: Vec<u8>,
}

impl Witness {
    pub(super) fn connect(server: &Server, disk: &Disk, operator: &Operator) -> Result<Witness> {
        let endpoint = server.endpoint().clone();
        let file = File::options().read(true).write(true).open(disk.path())?;
        let cold = pattern(7, 2 << 20);
        file.write_all_at(&cold, COLD)?;
        file.sync_all()?;
        let mut model = vec![0; usize::try_from(SIZE)?];
        model[usize::try_from(COLD)?..].copy_from_slice(&cold);
        let clients = (0..2).map(|_| connect(&endpoint)).collect::<Result<_>>()?;
        let admin = operator.socket().to_owned();
        Ok(Witness { endpoint, admin, file, clients, round: 0, model })
    }

    /// Asks everything once, but for what is left out.
    pub(super) fn round(&mut self, waits: &mut Waits, leave_out: impl Fn(Asked) -> bool) -> Result<()> {
        self.round += 1;
        for asked in ASKED.into_iter().filter(|asked| !leave_out(*asked)) {
            let began = Instant::now();
            let wait = self.ask(asked).with_context(|| format!("{asked} after {:?}", began.elapsed()))?;
            waits.note(asked, wait);
        }
        waits.rounds += 1;
        Ok(())
    }

    fn ask(&mut self, asked: Asked) -> Result<Duration> {
        let seed = self.round.to_le_bytes()[0];
        let block = self.round % 256 * BLOCK as u64;
        match asked {
            Asked::Write => self.write(PLAIN, SHORT + block, &pattern(seed, BLOCK)),
            Asked::Fua => self.write(FUA, DURABLE + block, &pattern(seed, BLOCK)),
            Asked::LongWrite => self.write(PLAIN, LONG, &pattern(seed, 1 << 20)),
            Asked::Read => self.read(SHORT + block, BLOCK),
            Asked::LongRead => self.read(LONG, 1 << 20),
            Asked::ColdRead => {
                let signed = |bytes: u64| i64::try_from(bytes).expect("it is small");
                let dont_need = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                posix_fadvise(&self.file, signed(COLD), signed(2 * MIB), dont_need)?;
                self.read(COLD + block, BLOCK)
            }
            Asked::Flush => self.without_payload(CommandType::FLUSH, 0, 0),
            Asked::Trim => {
                let wait = self.without_payload(CommandType::TRIM, TRIMMED + block, BLOCK)?;
                self.store(TRIMMED + block, &[0; BLOCK])?;
                Ok(wait)
            }
            Asked::NewClient => self.new_client(),
            Asked::List => self.list(),
        }
    }

    fn client(&mut self) -> &mut Client {
        let count = self.clients.len() as u64;
        &mut self.clients[usize::from(self.round.is_multiple_of(count))]
    }

    fn write(&mut self, flags: CommandFlags, at: u64, data: &[u8]) -> Result<Duration> {
        let began = Instant::now();
        let client = self.client();
        let mut out = Vec::new();
        client.encode(&mut out, CommandType::WRITE, flags, at, u32::try_from(data.len())?);
        out.extend_from_slice(data);
        client.socket.write_all(&out)?;
        let reply = client.try_reply()?;
        let wait = began.elapsed();
        ensure!(reply.error == WireError::OK, "{:?}", reply.error);
        self.store(at, data)?;
        Ok(wait)
    }

    fn store(&mut self, at: u64, data: &[u8]) -> Result<()> {
        self.model[usize::try_from(at)?..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, at: u64, len: usize) -> Result<Duration> {
        let began = Instant::now();
        let client = self.client();
        client.send(CommandType::READ, PLAIN, at, u32::try_from(len)?);
        let reply = client.try_reply()?;
        let wait = began.elapsed();
        ensure!(reply.error == WireError::OK, "{:?}", reply.error);
        ensure!(
            reply.data == self.model[usize::try_from(at)?..][..len],
            "it read something else than was written"
        );
        Ok(wait)
    }

    fn without_payload(&mut self, command: CommandType, at: u64, len: usize) -> Result<Duration> {
        let began = Instant::now();
        let client = self.client();
        client.send(command, PLAIN, at, u32::try_from(len)?);
        let reply = client.try_reply()?;
        ensure!(reply.error == WireError::OK, "{:?}", reply.error);
        Ok(began.elapsed())
    }

    fn new_client(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let mut client = connect(&self.endpoint)?;
        client.send(CommandType::READ, PLAIN, COLD, 512);
        let reply = client.try_reply()?;
        let wait = began.elapsed();
        ensure!(reply.error == WireError::OK && reply.data == self.model[usize::try_from(COLD)?..][..512]);
        client.send(CommandType::DISC, PLAIN, 0, 0);
        Ok(wait)
    }

    fn list(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let mut stream = UnixStream::connect(&self.admin)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"{\"command\":\"list\"}\n")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if !answer.contains("\"good\"") {
            bail!("the operator is told {answer:?}");
        }
        Ok(began.elapsed())
    }

    /// What the disk does not hold though it was answered.
    pub(super) fn lost(&self, disk: &Disk) -> Option<String> {
        let content = disk.content();
        let place = content.iter().zip(&self.model).position(|(found, due)| found != due)?;
        Some(format!("byte {place} of the good disk is not what was written"))
    }
}

fn connect(to: &Endpoint) -> Result<Client> {
    let client = Client::try_connect(to, "good")?;
    client.socket.patience(LIMIT)?;
    Ok(client)
}
