//! One random life of a server: several connections that write, read, flush, break and come back,
//! a disk that answers in any order and fails, and a power cut imagined after every step.
//!
//! A seed decides everything; a life replays exactly from it.

use std::collections::HashMap;
use std::ops::Range;

use common::command::Fua;
use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::Mode;
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::client::Client;
use crate::disk::{Disk, Fault, Op, UNIT};
use crate::oracle::{History, Write};
use crate::world::{LIMITS, World};

const UNITS: usize = 8;
const INITIAL: u8 = 255;
const CONNECTIONS: usize = 3;
const STEPS: u64 = 60;

/// A violated promise, in words.
pub(crate) type Violation = String;

struct Life {
    rng: TestRng,
    mode: Mode,
    world: World,
    connections: Vec<Connection>,
    history: History,
    now: u64,
    values: u8,
    faults: bool,
    /// Since when nothing may be acknowledged as durable.
    poisoned: Option<u64>,
}

struct Connection {
    client: Client,
    asked: HashMap<u64, Asked>,
}

/// A request that waits for its answer.
#[derive(Debug, Clone)]
enum Asked {
    /// Number of the write in the history.
    Write(usize),
    Flush(u64),
    Read(Range<usize>, u64),
}

/// Lives one life to its end.
pub(crate) fn live(mode: Mode, seed: u64) -> Result<(), Violation> {
    let mut life = Life::new(mode, seed);
    for _ in 0..STEPS {
        life.step();
        life.check()?;
    }
    life.end()
}

impl Life {
    fn new(mode: Mode, seed: u64) -> Life {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let disk = Disk::new(UNITS * UNIT, INITIAL);
        disk.hold(|_| true);
        let world = World::on(disk, mode);
        let connections = (0..CONNECTIONS).map(|_| Connection::new(&world)).collect();
        let faults = rng.random_bool(0.4);
        let history = History::new(mode, INITIAL);
        Life { rng, mode, world, connections, history, now: 1, values: 0, faults, poisoned: None }
    }

    fn step(&mut self) {
        self.now += 1;
        match self.rng.random_range(0..100) {
            0..32 => self.write(),
            32..40 => self.read(),
            40..50 => self.flush(),
            50..86 => self.release(),
            86..91 => self.world.pass_time(),
            91..95 => self.reconnect(),
            95..98 => self.break_off(),
            _ => self.restart(),
        }
        self.world.settle();
    }

    fn write(&mut self) {
        let units = self.units();
        let flags = if self.rng.random_bool(0.25) { CommandFlags::FUA } else { CommandFlags::NONE };
        let kind = match self.rng.random_range(0..6) {
            0 => CommandType::TRIM,
            1 => CommandType::WRITE_ZEROES,
            _ => CommandType::WRITE,
        };
        let (at, len) = bytes(&units);
        let connection = self.rng.random_range(0..CONNECTIONS);
        let client = &mut self.connections[connection].client;
        let (cookie, value) = if kind == CommandType::WRITE {
            self.values += 1;
            (client.write(at, len, self.values, flags), self.values)
        } else {
            (client.ask(kind, at, len, flags), 0)
        };
        let durable = flags == CommandFlags::FUA;
        let asked = Asked::Write(self.history.writes.len());
        self.history.writes.push(Write { units, value, durable, received: self.now, acknowledged: None });
        self.connections[connection].asked.insert(cookie, asked);
    }

    fn read(&mut self) {
        let units = self.units();
        let (at, len) = bytes(&units);
        let connection = &mut self.connections[self.rng.random_range(0..CONNECTIONS)];
        let cookie = connection.client.ask(CommandType::READ, at, len, CommandFlags::NONE);
        connection.asked.insert(cookie, Asked::Read(units, self.now));
    }

    fn flush(&mut self) {
        let connection = &mut self.connections[self.rng.random_range(0..CONNECTIONS)];
        let cookie = connection.client.flush();
        connection.asked.insert(cookie, Asked::Flush(self.now));
    }

    /// Lets some operation of the disk go on, or go wrong.
    fn release(&mut self) {
        let held = self.world.disk.held();
        if held.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..held.len());
        let fault = self.faults && self.rng.random_bool(0.06);
        if fault && self.poisons(held[index]) {
            self.poisoned.get_or_insert(self.now);
        }
        self.world.disk.release_with(index, fault.then_some(Fault::Errno(5)));
    }

    /// Whether an operation that fails loses something that was acknowledged, or may have.
    fn poisons(&self, op: Op) -> bool {
        let background = self.mode == Mode::EarlyAck;
        match op {
            Op::Sync | Op::Write(_, _, Fua::Yes) => true,
            Op::Write(_, _, Fua::No) => background,
            Op::Read(..) | Op::Zero(..) | Op::Trim(..) => false,
        }
    }

    /// A connection dies with whatever it was waiting for, and its client comes back.
    fn reconnect(&mut self) {
        let connection = &mut self.connections[self.rng.random_range(0..CONNECTIONS)];
        connection.client.vanish();
        *connection = Connection::new(&self.world);
    }

    /// A connection dies in the middle of a WRITE, which must have no effect.
    fn break_off(&mut self) {
        let (at, len) = bytes(&self.units());
        let connection = &mut self.connections[self.rng.random_range(0..CONNECTIONS)];
        connection.client.ask(CommandType::WRITE, at, len, CommandFlags::NONE);
        let sent = self.rng.random_range(0..len as usize);
        connection.client.send(&vec![254; sent]);
        self.world.settle();
        connection.client.vanish();
        *connection = Connection::new(&self.world);
    }

    /// The server is killed while the disk is idle, and another one starts on the same disk.
    /// In `early-ack` that loses acknowledged data, so lives in it have one server only.
    fn restart(&mut self) {
        let idle = self.world.disk.held().is_empty();
        if self.mode == Mode::EarlyAck || !idle || self.poisoned.is_some() {
            return;
        }
        self.world = World::on(self.world.disk.clone(), self.mode);
        self.connections = (0..CONNECTIONS).map(|_| Connection::new(&self.world)).collect();
    }

    fn units(&mut self) -> Range<usize> {
        let start = self.rng.random_range(0..UNITS);
        start..(start + self.rng.random_range(1..=3)).min(UNITS)
    }

    /// Takes the answers that have arrived, then holds the state against the contract.
    fn check(&mut self) -> Result<(), Violation> {
        self.answers()?;
        let dirty = self.world.health().dirty_bytes;
        ensure(dirty <= LIMITS.dirty_max, || format!("{dirty} dirty bytes"))?;
        for unit in 0..UNITS {
            let (cached, possible) = self.world.disk.unit(unit);
            let allowed = self.history.after_power_cut(unit);
            ensure(possible.is_subset(&allowed), || {
                format!("a power cut could leave {possible:?} in unit {unit}; allowed: {allowed:?}")
            })?;
            let allowed = self.history.after_kill(unit);
            ensure(allowed.contains(&cached), || {
                format!("a kill would leave {cached} in unit {unit}; allowed: {allowed:?}")
            })?;
        }
        Ok(())
    }

    fn answers(&mut self) -> Result<(), Violation> {
        for connection in &mut self.connections {
            while let Some((cookie, error, data)) = connection.reply() {
                let asked = connection.asked.remove(&cookie);
                let asked = asked.ok_or_else(|| format!("an answer to {cookie}, which nobody asked"))?;
                if error != WireError::OK {
                    continue;
                }
                let durable = match asked {
                    Asked::Write(number) => {
                        let write = &mut self.history.writes[number];
                        write.acknowledged = Some(self.now);
                        write.durable || self.mode == Mode::Writethrough
                    }
                    Asked::Flush(received) => {
                        self.history.flushed(received);
                        true
                    }
                    Asked::Read(units, received) => {
                        check_read(&self.history, units, received, &data)?;
                        false
                    }
                };
                let too_late = self.poisoned.is_some() && durable && self.mode != Mode::Unsafe;
                ensure(!too_late, || format!("{cookie} succeeded although data was lost before"))?;
            }
        }
        Ok(())
    }

    /// The disk becomes well, everything is answered, the server stops.
    fn end(mut self) -> Result<(), Violation> {
        self.world.disk.hold(|_| false);
        while !self.world.disk.held().is_empty() {
            self.now += 1;
            self.world.disk.release(0);
            self.world.settle();
            self.check()?;
        }
        self.now += 1;
        self.world.pass_time();
        self.check()?;
        for connection in &self.connections {
            ensure(connection.asked.is_empty(), || format!("never answered: {:?}", connection.asked))?;
        }
        let aged = self.world.health();
        ensure(aged.poison.is_some() || aged.dirty_bytes == 0, || format!("after its age: {aged:?}"))?;
        let closed = self.world.close().ok_or("the stop never ends")?;
        ensure(closed.is_ok() != self.poisoned.is_some() || self.mode == Mode::Unsafe, || {
            format!("the stop says {closed:?}, poisoned: {:?}", self.poisoned)
        })?;
        for unit in (0..UNITS).filter(|_| closed.is_ok()) {
            let (_, possible) = self.world.disk.unit(unit);
            let allowed = self.history.after_stop(unit);
            ensure(possible.is_subset(&allowed), || {
                format!("a stop leaves {possible:?} in unit {unit}; allowed: {allowed:?}")
            })?;
        }
        Ok(())
    }
}

impl Connection {
    fn new(world: &World) -> Connection {
        Connection { client: world.connect(), asked: HashMap::new() }
    }

    fn reply(&mut self) -> Option<(u64, WireError, Vec<u8>)> {
        let asked = &self.asked;
        self.client.reply(|cookie| match asked.get(&cookie) {
            Some(Asked::Read(units, _)) => units.len() * UNIT,
            _ => 0,
        })
    }
}

fn check_read(history: &History, units: Range<usize>, received: u64, data: &[u8]) -> Result<(), Violation> {
    for (unit, content) in units.zip(data.chunks(UNIT)) {
        let allowed = history.readable(unit, received);
        let whole = content.iter().all(|byte| *byte == content[0]);
        ensure(whole && allowed.contains(&content[0]), || {
            format!("a read of unit {unit} returned {}; allowed: {allowed:?}", content[0])
        })?;
    }
    Ok(())
}

fn bytes(units: &Range<usize>) -> (u64, u32) {
    let len = u32::try_from(units.len() * UNIT).expect("the disk is small");
    ((units.start * UNIT) as u64, len)
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
