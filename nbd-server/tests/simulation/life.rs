//! A server's life, as its clients, its disk and its host make it: every action that can happen to it,
//! and the contract checked after each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use common::command::Fua;
use common::proto::{CommandFlags, CommandType, WireError};
use nbd_server::durability::{ChangeError, Mode};

use crate::client::Client;
use crate::disk::{Disk, Fault, Op, UNIT};
use crate::oracle::{History, Write};
use crate::record::Stored;
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
    /// The server was killed when it was on record that the export is poisoned.
    poison_must_stay: bool,
    /// Errors of syncs that the server has answered for by poisoning the export.
    answered_errors: u64,
    /// Whether a request could fail for a reason of its own, or because of a loss.
    faults: bool,
    /// What must not come back: contents of writes that were left under way by a connection that had
    /// ended, and that had not taken effect when a later connection was answered.
    ghosts: HashSet<(usize, u8)>,
    /// Changes of the mode that are under way, and when each was asked for.
    changes: Vec<(u64, world::Asked<Result<(), ChangeError>>)>,
    /// The operator's wishes that the poison be cleared, which wait for the record.
    clearing: Vec<world::Asked<bool>>,
    /// The epoch that holds unless there is a loss.
    epoch: u64,
}

struct Connection {
    client: Client,
    asked: HashMap<u64, Asked>,
    /// Writes of connections that had ended when this one began, by their number in the history.
    left_behind: Vec<usize>,
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
        let world = World::on(&Disk::new(units * UNIT, INITIAL), mode);
        world.disk.hold(|_| true);
        world.disk.split();
        let connections = (0..connections).map(|_| Connection::new(&world, Vec::new())).collect();
        Life {
            units,
            connections,
            history: History::new(INITIAL),
            now: 1,
            values: 0,
            poisoned: None,
            poison_must_stay: false,
            answered_errors: 0,
            faults: false,
            ghosts: HashSet::new(),
            changes: Vec::new(),
            clearing: Vec::new(),
            epoch: world.epoch(),
            world,
        }
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
        let op = self.world.disk.held()[index];
        let fault = fault.filter(|_| op != Op::Deliver);
        self.faults |= fault.is_some() && !matches!(op, Op::Sync | Op::Persist);
        self.world.disk.release_with(index, fault);
    }

    /// The kernel writes a unit back, or fails to.
    pub(crate) fn write_back(&mut self, unit: usize, fault: Option<Fault>) {
        self.world.disk.write_back(unit, fault);
    }

    /// A connection dies with whatever it was waiting for, and its client comes back.
    pub(crate) fn reconnect(&mut self, connection: usize) {
        let connection = &mut self.connections[connection];
        connection.client.vanish();
        self.world.settle();
        let under_way = |asked: &Asked| match asked {
            Asked::Write(number) => Some(*number),
            Asked::Flush(_) | Asked::Read(..) => None,
        };
        let mut left_behind = std::mem::take(&mut connection.left_behind);
        left_behind.extend(connection.asked.values().filter_map(under_way));
        *connection = Connection::new(&self.world, left_behind);
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

    /// The server is killed, and another one starts on the same disk.
    pub(crate) fn kill(&mut self) {
        let is_on_record = self.world.stored.record().epoch == self.world.epoch();
        self.poison_must_stay = self.poisoned.is_some() && is_on_record;
        self.restart(|_, _| {});
    }

    /// The server is killed, and another one starts after the file system was unmounted, which could
    /// write everything back or could not.
    pub(crate) fn remount(&mut self, fault: Option<Fault>) {
        self.restart(|disk, _| disk.remount(fault));
    }

    /// The host loses its power; `choose` picks one of so many possibilities.
    pub(crate) fn power_cut(&mut self, mut choose: impl FnMut(usize) -> usize) {
        self.restart(|disk, stored| {
            let of_unit = |possible: &BTreeSet<u8>, index| *possible.iter().nth(index).expect("one of them");
            disk.power_cut(|possible| of_unit(possible, choose(possible.len())));
            stored.reboot(choose);
        });
    }

    fn restart(&mut self, happens: impl FnOnce(&Disk, &Stored)) {
        let (disk, stored, mode) = (self.world.disk.clone(), self.world.stored.clone(), self.world.mode());
        self.world = World::after(&disk, stored.clone(), mode);
        drop(std::mem::replace(&mut self.world, World::on(&Disk::new(UNIT, 0), mode)));
        disk.abandon();
        happens(&disk, &stored);
        self.world = World::after(&disk, stored, mode);
        self.world.settle();
        self.connections =
            self.connections.iter().map(|_| Connection::new(&self.world, Vec::new())).collect();
        self.changes.clear();
        self.clearing.clear();
        self.ghosts.clear();
        let epoch = self.world.epoch();
        if epoch != self.epoch {
            // Its clients know that what was not stable may be lost.
            self.history.forgive();
            self.epoch = epoch;
        }
        self.answered_errors = disk.delivered_errors();
        self.poisoned = self.world.health().poison.map(|_| self.now);
    }

    /// The operator asks for another mode.
    pub(crate) fn change_mode(&mut self, to: Mode) {
        let change = self.world.change_mode(to);
        self.changes.push((self.now, change));
    }

    /// The operator clears the poison, and knows what that means.
    pub(crate) fn clear_poison(&mut self) {
        let cleared = self.world.clear_poison();
        self.clearing.push(cleared);
    }

    /// Takes the answers that have arrived, then holds the state against the contract.
    fn check(&mut self) -> Result<(), Violation> {
        let must_stay = std::mem::take(&mut self.poison_must_stay);
        ensure(!must_stay || self.poisoned.is_some(), || "a restart has cleared the poison".into())?;
        let was_poisoned = self.poisoned.is_some();
        self.cleared();
        self.answers()?;
        self.changed()?;
        self.check_poison(was_poisoned)?;
        let dirty = self.world.health().dirty_bytes;
        ensure(dirty <= LIMITS.dirty_max, || format!("{dirty} dirty bytes"))?;
        for unit in 0..self.units {
            let (cached, possible) = self.world.disk.unit(unit);
            ensure(!self.ghosts.contains(&(unit, cached)), || {
                format!("{cached} appears in unit {unit}, long after its connection ended")
            })?;
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

    /// The poison is cleared for those whose wish was fulfilled.
    fn cleared(&mut self) {
        let poisoned = self.world.health().poison.is_some();
        if self.poisoned.is_some() && !poisoned {
            self.poisoned = None;
            self.history.forgive();
            self.epoch = self.world.epoch();
        }
        self.clearing.retain_mut(|cleared| cleared.try_recv() == Ok(None));
    }

    /// An error of a sync that has reached the server has poisoned the export.
    fn check_poison(&mut self, was_poisoned: bool) -> Result<(), Violation> {
        let poisoned = self.world.health().poison.is_some();
        let errors = self.world.disk.delivered_errors();
        ensure(errors == self.answered_errors || poisoned || was_poisoned, || {
            "a failed sync is forgotten".into()
        })?;
        self.answered_errors = errors;
        if poisoned {
            // A request that is under way fails even if the poison is cleared before it is answered.
            self.faults = true;
            self.poisoned.get_or_insert(self.now);
        }
        Ok(())
    }

    /// A client that finds the same epoch again has lost nothing; the epoch changes when the export is
    /// poisoned.
    fn check_epoch(&self) -> Result<(), Violation> {
        let (now, poisoned) = (self.world.epoch(), self.world.health().poison.is_some());
        ensure((now != self.epoch) == poisoned || self.began_poisoned(), || {
            format!("epoch {now}, before {}, poisoned: {poisoned}", self.epoch)
        })?;
        let stored = &self.world.stored;
        let (killed, power_lost) = (stored.epoch_after_kill() == now, stored.may_survive_power_cut(now));
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

    /// Whether the server was poisoned from its start: that loss has its epoch already.
    fn began_poisoned(&self) -> bool {
        self.world.epoch() == self.epoch && self.poisoned.is_some()
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
        let mut left_behind = Vec::new();
        for connection in &mut self.connections {
            while let Some((cookie, error, data)) = connection.reply() {
                let asked = connection.asked.remove(&cookie);
                let asked = asked.ok_or_else(|| format!("an answer to {cookie}, which nobody asked"))?;
                if error != WireError::OK {
                    let explained = self.faults || self.world.health().poison.is_some();
                    ensure(explained, || format!("{cookie} fails for no reason"))?;
                    continue;
                }
                if !matches!(asked, Asked::Write(_)) {
                    left_behind.append(&mut connection.left_behind);
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
        if self.world.health().dirty_bytes > 0 {
            // It may have taken effect in the cache, where only readers see it.
            left_behind.clear();
        }
        for write in left_behind.into_iter().map(|number| &self.history.writes[number]) {
            // Zeroes look alike.
            for unit in write.units.clone().filter(|_| write.value != 0) {
                if self.world.disk.unit(unit).0 != write.value {
                    self.ghosts.insert((unit, write.value));
                }
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
        ensure(aged.record_is_stored, || format!("after its age: {aged:?}"))?;
        let closed = self.world.close().ok_or("the stop never ends")?;
        self.check()?;
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
        let survives = self.world.stored.may_survive_power_cut(self.epoch);
        ensure(survives, || "a stop that loses nothing changes the epoch".into())
    }
}

impl Connection {
    fn new(world: &World, left_behind: Vec<usize>) -> Connection {
        Connection { client: world.connect(), asked: HashMap::new(), left_behind }
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
