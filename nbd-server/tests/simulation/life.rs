//! A server's life, as its clients and its disk make it: every action that can happen to it, and
//! the contract checked after each.

use std::collections::HashMap;
use std::ops::Range;

use common::command::Fua;
use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::{ChangeError, Mode};

use crate::client::Client;
use crate::disk::{Disk, Fault, Op, UNIT};
use crate::oracle::{History, Write};
use crate::record::BOOT;
use crate::world::{self, LIMITS, World};

/// What every unit holds before anything is written.
const INITIAL: u8 = 255;
/// What the payload of a WRITE that is broken off would leave.
const BROKEN: u8 = 254;

/// A violated promise, in words.
pub(crate) type Violation = String;

/// A server, its connections, and what was promised so far.
pub(crate) struct Life {
    units: usize,
    pub(crate) world: World,
    connections: Vec<Connection>,
    history: History,
    now: u64,
    values: u8,
    /// Since when nothing may be acknowledged as durable.
    poisoned: Option<u64>,
    /// Changes of the mode that are under way, and when each was asked for.
    changes: Vec<(u64, world::Asked<Result<(), ChangeError>>)>,
    /// The epoch that holds unless there is a loss.
    epoch: u64,
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

impl Life {
    /// A server in `mode` on a disk of `units` units whose every operation is held.
    pub(crate) fn new(mode: Mode, units: usize, connections: usize) -> Life {
        let disk = Disk::new(units * UNIT, INITIAL);
        disk.hold(|_| true);
        let world = World::on(disk, mode);
        let connections = (0..connections).map(|_| Connection::new(&world)).collect();
        let history = History::new(INITIAL);
        let (epoch, changes) = (world.epoch(), Vec::new());
        Life { units, world, connections, history, now: 1, values: 0, poisoned: None, changes, epoch }
    }

    /// Does one thing, lets everything run, and checks the contract.
    pub(crate) fn step(&mut self, act: impl FnOnce(&mut Life)) -> Result<(), Violation> {
        self.now += 1;
        act(self);
        self.world.settle();
        self.check()
    }

    /// Sends a write-class request.
    pub(crate) fn write(&mut self, connection: usize, kind: CommandType, units: Range<usize>, fua: Fua) {
        let flags = if fua == Fua::Yes { CommandFlags::FUA } else { CommandFlags::NONE };
        let (at, len) = bytes(&units);
        let client = &mut self.connections[connection].client;
        let (cookie, value) = if kind == CommandType::WRITE {
            self.values += 1;
            (client.write(at, len, self.values, flags), self.values)
        } else {
            (client.ask(kind, at, len, flags), 0)
        };
        let asked = Asked::Write(self.history.writes.len());
        self.history.writes.push(Write::new(units, value, fua == Fua::Yes, self.now));
        self.connections[connection].asked.insert(cookie, asked);
    }

    /// Sends a READ.
    pub(crate) fn read(&mut self, connection: usize, units: Range<usize>) {
        let (at, len) = bytes(&units);
        let connection = &mut self.connections[connection];
        let cookie = connection.client.ask(CommandType::READ, at, len, CommandFlags::NONE);
        connection.asked.insert(cookie, Asked::Read(units, self.now));
    }

    /// Sends a FLUSH.
    pub(crate) fn flush(&mut self, connection: usize) {
        let connection = &mut self.connections[connection];
        let cookie = connection.client.flush();
        connection.asked.insert(cookie, Asked::Flush(self.now));
    }

    /// Lets the held operation number `index` of the disk go on, or go wrong.
    pub(crate) fn release(&mut self, index: usize, fault: Option<Fault>) {
        if fault.is_some() && self.poisons(self.world.disk.held()[index]) {
            self.poisoned.get_or_insert(self.now);
        }
        self.world.disk.release_with(index, fault);
    }

    /// Whether an operation that fails loses something that was acknowledged, or may have.
    fn poisons(&self, op: Op) -> bool {
        match op {
            Op::Sync | Op::Write(_, _, Fua::Yes) => true,
            Op::Write(_, _, Fua::No) => self.world.mode() == Mode::EarlyAck,
            Op::Read(..) | Op::Zero(..) | Op::Trim(..) => false,
        }
    }

    /// A connection dies with whatever it was waiting for, and its client comes back.
    pub(crate) fn reconnect(&mut self, connection: usize) {
        let connection = &mut self.connections[connection];
        connection.client.vanish();
        *connection = Connection::new(&self.world);
    }

    /// A connection dies after `sent` bytes of a WRITE's payload, which must have no effect.
    pub(crate) fn break_off(&mut self, connection: usize, units: &Range<usize>, sent: usize) {
        let (at, len) = bytes(units);
        let client = &mut self.connections[connection].client;
        client.ask(CommandType::WRITE, at, len, CommandFlags::NONE);
        client.send(&vec![BROKEN; sent]);
        self.world.settle();
        self.reconnect(connection);
    }

    /// The server is killed while the disk is idle, and another one starts on the same disk. If
    /// that loses what was acknowledged, the life would be over, so only others are killed.
    pub(crate) fn restart(&mut self) {
        let idle = self.world.disk.held().is_empty();
        let dirty = self.world.health().dirty_bytes > 0;
        if dirty || !idle || self.poisoned.is_some() {
            return;
        }
        let (disk, kept, mode) = (self.world.disk.clone(), self.world.kept.clone(), self.world.mode());
        self.world = World::after(disk, kept, mode);
        self.connections = self.connections.iter().map(|_| Connection::new(&self.world)).collect();
        self.changes.clear();
        // Whether it had to change is checked after every step.
        self.epoch = self.world.epoch();
    }

    /// The operator asks for another mode.
    pub(crate) fn change_mode(&mut self, to: Mode) {
        let change = self.world.change_mode(to);
        self.changes.push((self.now, change));
    }

    /// The operator clears the poison, and knows what that means.
    pub(crate) fn forgive(&mut self) {
        let mut forgiven = self.world.forgive();
        self.world.settle();
        if forgiven.try_recv() == Ok(Some(true)) {
            self.poisoned = None;
            self.history.forgive();
            self.epoch = self.world.epoch();
        }
    }

    /// Takes the answers that have arrived, then holds the state against the contract.
    fn check(&mut self) -> Result<(), Violation> {
        self.answers()?;
        self.changed()?;
        let dirty = self.world.health().dirty_bytes;
        ensure(dirty <= LIMITS.dirty_max, || format!("{dirty} dirty bytes"))?;
        for unit in 0..self.units {
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
        self.check_epoch()
    }

    /// Whoever finds the same epoch again has lost nothing; it changes when the export is poisoned.
    fn check_epoch(&self) -> Result<(), Violation> {
        let (now, poisoned) = (self.world.epoch(), self.world.health().poison.is_some());
        ensure((now != self.epoch) == poisoned, || {
            format!("epoch {now}, before {}, poisoned: {poisoned}", self.epoch)
        })?;
        let kept = &self.world.kept;
        let (killed, power_lost) = (kept.epoch_after(BOOT) == now, kept.epoch_after(BOOT + 1) == now);
        for unit in 0..self.units {
            let (cached, possible) = self.world.disk.unit(unit);
            let allowed = self.history.nothing_lost(unit);
            ensure(!power_lost || possible.is_subset(&allowed), || {
                format!(
                    "a power cut could leave {possible:?} in unit {unit} and the epoch; not lost: {allowed:?}"
                )
            })?;
            ensure(!killed || allowed.contains(&cached), || {
                format!("a kill would leave {cached} in unit {unit} and the epoch; not lost: {allowed:?}")
            })?;
        }
        Ok(())
    }

    /// A change of the mode that succeeded has made everything stable.
    fn changed(&mut self) -> Result<(), Violation> {
        for (asked, mut change) in std::mem::take(&mut self.changes) {
            match change.try_recv() {
                Ok(None) => self.changes.push((asked, change)),
                Ok(Some(Ok(()))) => {
                    ensure(self.poisoned.is_none(), || "the mode was changed although data was lost".into())?;
                    self.history.flushed(asked);
                }
                Ok(Some(Err(_))) => {}
                Err(_) => return Err("a change of the mode was forgotten".into()),
            }
        }
        Ok(())
    }

    fn answers(&mut self) -> Result<(), Violation> {
        let mode = self.world.mode();
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
                        write.acknowledged = Some((self.now, mode));
                        write.durable || mode == Mode::Writethrough
                    }
                    Asked::Flush(received) => {
                        if mode != Mode::Unsafe {
                            self.history.flushed(received);
                        }
                        true
                    }
                    Asked::Read(units, received) => {
                        check_read(&self.history, units, received, &data)?;
                        false
                    }
                };
                let too_late = self.poisoned.is_some() && durable && mode != Mode::Unsafe;
                ensure(!too_late, || format!("{cookie} succeeded although data was lost before"))?;
            }
        }
        Ok(())
    }

    /// The disk becomes well, everything is answered, the server stops.
    pub(crate) fn end(mut self) -> Result<(), Violation> {
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
        ensure(closed.is_ok() != self.poisoned.is_some(), || {
            format!("the stop says {closed:?}, poisoned: {:?}", self.poisoned)
        })?;
        if closed.is_err() {
            return Ok(());
        }
        for unit in 0..self.units {
            let (_, possible) = self.world.disk.unit(unit);
            let allowed = self.history.nothing_lost(unit);
            ensure(possible.is_subset(&allowed), || {
                format!("a stop leaves {possible:?} in unit {unit}; allowed: {allowed:?}")
            })?;
        }
        ensure(self.world.kept.epoch_after(BOOT + 1) == self.epoch, || {
            "a stop that loses nothing changes the epoch".into()
        })
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
