//! Thousands of random lives per mode, none of which may break a promise.
//!
//! `NBD_SIM_SEEDS=N` lives N lives per mode, `NBD_SIM_FIRST=S` starts at seed S. A violation
//! prints its seed; `NBD_SIM_FIRST=S NBD_SIM_SEEDS=1` replays it exactly.

use nbd_server::durability::Mode;

use crate::chaos;

/// Lives per mode in the ordinary test run.
const SEEDS: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number of seeds"))
}

fn soak(mode: Mode) {
    let first = number("NBD_SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("NBD_SIM_SEEDS").unwrap_or(SEEDS) {
        if let Err(violation) = chaos::live(mode, seed) {
            panic!("{mode:?}, seed {seed}: {violation}\nreplay: NBD_SIM_FIRST={seed} NBD_SIM_SEEDS=1");
        }
    }
}

#[test]
fn writethrough_keeps_its_promises() {
    soak(Mode::Writethrough);
}

#[test]
fn writeback_keeps_its_promises() {
    soak(Mode::Writeback);
}

#[test]
fn early_ack_keeps_its_promises() {
    soak(Mode::EarlyAck);
}

#[test]
fn unsafe_mode_keeps_what_it_promises() {
    soak(Mode::Unsafe);
}
