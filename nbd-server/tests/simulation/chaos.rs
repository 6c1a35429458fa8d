//! Random lives: several connections that write, read, flush, break and come back, a disk that
//! answers in any order and fails. A seed decides everything; a life replays exactly from it.

use std::ops::Range;

use common::command::Fua;
use common::proto::CommandType;
use nbd_server::durability::Mode;
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::disk::{Fault, UNIT};
use crate::life::{Life, Violation};

const MODES: [Mode; 4] = [Mode::Writethrough, Mode::Writeback, Mode::EarlyAck, Mode::Unsafe];
const UNITS: usize = 8;
const CONNECTIONS: usize = 3;
const STEPS: u64 = 60;

/// Lives one life to its end.
pub(crate) fn live(mode: Mode, seed: u64) -> Result<(), Violation> {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seeded(seed));
    let faults = rng.random_bool(0.4);
    let mut life = Life::new(mode, UNITS, CONNECTIONS);
    for _ in 0..STEPS {
        life.step(|life| act(life, &mut rng, faults))?;
    }
    life.end()
}

fn seeded(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

fn act(life: &mut Life, rng: &mut TestRng, faults: bool) {
    let connection = rng.random_range(0..CONNECTIONS);
    match rng.random_range(0..100) {
        0..32 => {
            let fua = if rng.random_bool(0.25) { Fua::Yes } else { Fua::No };
            let kind = match rng.random_range(0..6) {
                0 => CommandType::TRIM,
                1 => CommandType::WRITE_ZEROES,
                _ => CommandType::WRITE,
            };
            life.write(connection, kind, units(rng), fua);
        }
        32..40 => life.read(connection, units(rng)),
        40..50 => life.flush(connection),
        50..81 => {
            // Each is held twice.
            for _ in 0..2 {
                let held = life.world.disk.held().len();
                if held > 0 {
                    life.release(rng.random_range(0..held), fault(rng, faults));
                    life.world.settle();
                }
            }
        }
        81..85 => {
            let unit = rng.random_range(0..UNITS);
            life.write_back(unit, fault(rng, faults));
        }
        85..90 => life.world.pass_time(),
        90..94 => life.reconnect(connection),
        94..96 => {
            let units = units(rng);
            let sent = rng.random_range(0..units.len() * UNIT);
            life.break_off(connection, &units, sent);
        }
        96 => life.change_mode(MODES[rng.random_range(0..MODES.len())]),
        97 => life.clear_poison(),
        98 => life.kill(),
        _ => match rng.random_range(0..3) {
            0 => life.remount(fault(rng, faults)),
            _ => life.power_cut(|possibilities| rng.random_range(0..possibilities)),
        },
    }
}

/// Something that goes wrong now and then: the disk, or the file system's journal.
fn fault(rng: &mut TestRng, faults: bool) -> Option<Fault> {
    let errno = if rng.random_bool(0.8) { 5 } else { 30 };
    (faults && rng.random_bool(0.06)).then_some(Fault::Errno(errno))
}

fn units(rng: &mut TestRng) -> Range<usize> {
    let start = rng.random_range(0..UNITS);
    start..(start + rng.random_range(1..=3)).min(UNITS)
}
