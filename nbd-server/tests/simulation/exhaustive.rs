//! Every short life: all sequences of up to three requests over two units and two connections, with
//! the disk answering nothing, its oldest operation or everything after each.
//!
//! Small lives find most faults; that none of them is left out is worth more than many large ones.

use common::command::Fua;
use common::proto::CommandType;
use nbd_server::durability::Mode;

use crate::life::{Life, Violation};

const UNITS: usize = 2;
const CONNECTIONS: usize = 2;
const LENGTH: u32 = 3;

/// Something a client does.
#[derive(Debug, Clone, Copy)]
enum Act {
    Write(CommandType, Fua, usize),
    Read(usize),
    Flush,
    Reset,
}

/// How much of what the disk holds it does after an act.
#[derive(Debug, Clone, Copy)]
enum Pace {
    Nothing,
    Oldest,
    Everything,
}

const PACES: [Pace; 3] = [Pace::Nothing, Pace::Oldest, Pace::Everything];

/// One act of one connection, and what the disk does after it.
#[derive(Debug, Clone, Copy)]
struct Step {
    connection: usize,
    act: Act,
    pace: Pace,
}

fn acts() -> Vec<Act> {
    let mut acts = vec![Act::Flush, Act::Reset];
    for unit in 0..UNITS {
        acts.push(Act::Read(unit));
        for kind in [CommandType::WRITE, CommandType::WRITE_ZEROES, CommandType::TRIM] {
            acts.extend([Fua::Yes, Fua::No].map(|fua| Act::Write(kind, fua, unit)));
        }
    }
    acts
}

fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    for act in acts() {
        for connection in 0..CONNECTIONS {
            steps.extend(PACES.map(|pace| Step { connection, act, pace }));
        }
    }
    steps
}

fn live(mode: Mode, sequence: &[Step]) -> Result<(), Violation> {
    let mut life = Life::new(mode, UNITS, CONNECTIONS);
    for step in sequence {
        life.step(|life| match step.act {
            Act::Write(kind, fua, unit) => life.write(step.connection, kind, unit..unit + 1, fua),
            Act::Read(unit) => life.read(step.connection, unit..unit + 1),
            Act::Flush => life.flush(step.connection),
            Act::Reset => life.reconnect(step.connection),
        })?;
        let held = life.world.disk.held().len();
        let released = match step.pace {
            Pace::Nothing => 0,
            Pace::Oldest => held.min(1),
            Pace::Everything => held,
        };
        // Each is held twice: before it is carried out, and before the server is told.
        for _ in 0..released {
            life.step(|life| life.release(0, None))?;
        }
        for _ in 0..released.min(life.world.disk.held().len()) {
            life.step(|life| life.release(0, None))?;
        }
    }
    life.end()
}

fn every_life(mode: Mode) {
    let steps = steps();
    // Connections differ in nothing but their number, so the first step is always the first one's.
    let first: Vec<Step> = steps.iter().copied().filter(|step| step.connection == 0).collect();
    let mut lives = 0_u64;
    for length in 0..LENGTH {
        for number in 0..steps.len().pow(length) {
            for start in &first {
                let later = (0..length).map(|place| steps[number / steps.len().pow(place) % steps.len()]);
                let sequence: Vec<Step> = [*start].into_iter().chain(later).collect();
                lives += 1;
                if let Err(violation) = live(mode, &sequence) {
                    panic!("{mode:?}: {violation}\nafter {sequence:#?}");
                }
            }
        }
    }
    println!("{mode:?}: {lives} lives");
}

#[test]
fn every_short_life_in_writethrough() {
    every_life(Mode::Writethrough);
}

#[test]
fn every_short_life_in_writeback() {
    every_life(Mode::Writeback);
}

#[test]
fn every_short_life_in_early_ack() {
    every_life(Mode::EarlyAck);
}

#[test]
fn every_short_life_in_unsafe() {
    every_life(Mode::Unsafe);
}
