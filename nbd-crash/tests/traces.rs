//! Explores the committed recordings, made in virtual machines by `cargo xtask crash --keep`: correct contracts break
//! no promise of ext4, each broken one is found out soon, and who is guilty is named.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd_crash::contract::Contract;
use nbd_crash::explore::{Budget, Exploration, Outcome};
use nbd_crash::history::History;
use nbd_crash::image::Base;
use nbd_crash::oracle::Oracle;
use nbd_crash::oracle::ext4::Ext4Oracle;
use nbd_crash::oracle::raw::RawOracle;
use nbd_crash::state::{self, Named};
use nbd_crash::states::Choice;
use nbd_crash::walk::Walk;
use proptest::prelude::*;

/// Recordings of an honest server, by mode and connections.
const HONEST: [&str; 5] = [
    "1-writeback-ordinary",
    "4-writeback-ordinary",
    "4-writethrough-ordinary",
    "4-early-ack-ordinary",
    "4-writeback-busy",
];

fn trace(name: &str) -> Arc<History> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    Arc::new(
        History::open(&directory.join(name).with_extension("nbdrec.gz")).expect("the test can be set up"),
    )
}

fn exploration(history: &Arc<History>, contract: Contract, states: u64) -> Exploration {
    Exploration {
        history: history.clone(),
        base: Base::default(),
        contract,
        choice: Choice { seed: 7, unit: 4096, random: 20 },
        only_after_marks: true,
        budget: Budget { states, time: Duration::MAX },
        violations_max: 3,
        threads: 2,
    }
}

fn by_ext4(history: &Arc<History>, contract: Contract, states: u64) -> Outcome {
    let oracle = || Ok(Box::new(Ext4Oracle::new(history.clone())) as Box<dyn Oracle>);
    exploration(history, contract, states).run(&oracle, &mut |_, _| {}).expect("the test can be set up")
}

fn by_bytes(history: &Arc<History>, contract: Contract, states: u64) -> Outcome {
    let raw = || RawOracle::new(history.clone(), history.clone(), Base::default());
    let oracle = || Ok(Box::new(raw()) as Box<dyn Oracle>);
    exploration(history, contract, states).run(&oracle, &mut |_, _| {}).expect("the test can be set up")
}

/// What a recording with so many connections can show to be broken.
fn broken(name: &str) -> impl Iterator<Item = Contract> {
    let one = name.contains("-1-");
    Contract::BROKEN.into_iter().filter(move |contract| !one || *contract != Contract::OwnConnection)
}

#[test]
fn ext4_keeps_its_promises_on_an_honest_device() {
    let mut states = 0;
    for name in HONEST {
        let history = trace(&format!("ext4-{name}"));
        assert!(history.whole);
        for contract in [Contract::Nbd, Contract::Writethrough] {
            let outcome = by_ext4(&history, contract, 2_000);
            assert!(outcome.violations.is_empty(), "{name}: {:#?}", outcome.violations);
            states += outcome.states;
        }
    }
    assert!(states > 8_000, "only {states} states were looked at");
}

#[test]
fn a_broken_device_is_found_out_and_the_guilty_write_is_named() {
    for name in ["ext4-1-writeback-ordinary", "ext4-4-writeback-ordinary", "ext4-4-writeback-busy"] {
        let history = trace(name);
        for contract in broken(name) {
            let outcome = by_ext4(&history, contract, 1_000);
            assert!(outcome.first_violation.is_some(), "{name}, {contract:?}: nothing was found");
            for violation in &outcome.violations {
                let guilt = &violation.guilt;
                assert!(guilt.checks < 20, "{name}, {contract:?}: {violation:#?}");
                let promised = |words: &str| words.contains("FUA") || words.contains("FLUSH");
                assert!(guilt.lost.iter().any(|lost| promised(&lost.words)), "{violation:#?}");
                assert!(guilt.lost.len() <= 3 && !guilt.faults.is_empty(), "{violation:#?}");
            }
        }
    }
}

#[test]
fn a_server_that_promised_nothing_is_found_out() {
    let outcome = by_ext4(&trace("ext4-4-unsafe-ordinary"), Contract::Unsafe, 1_000);
    assert!(outcome.first_violation.is_some());
}

#[test]
fn bytes_tell_honest_devices_from_broken_ones_on_any_file_system() {
    for name in [
        "xfs-1-writeback-ordinary",
        "xfs-4-writeback-ordinary",
        "xfs-4-early-ack-ordinary",
        "xfs-4-writethrough-ordinary",
        "xfs-4-unsafe-ordinary",
    ] {
        let history = trace(name);
        let outcome = by_bytes(&history, Contract::Nbd, 300);
        assert!(outcome.violations.is_empty(), "{name}: {:#?}", outcome.violations);
        for contract in broken(name) {
            let outcome = by_bytes(&history, contract, 1_000);
            assert!(outcome.first_violation.is_some(), "{name}, {contract:?}: nothing was found");
            assert!(outcome.violations.iter().all(|it| it.guilt.checks < 20), "{:#?}", outcome.violations);
        }
    }
}

#[test]
fn a_state_is_had_again_by_its_name() {
    let history = trace("ext4-4-writeback-ordinary");
    let outcome = by_ext4(&history, Contract::NoFua, 500);
    for violation in &outcome.violations {
        for name in [&violation.state, &violation.guilt.state] {
            let named = Named::parse(&history, name).unwrap();
            let stability = Arc::new(named.contract.stability(&history));
            let mut walk = Walk::new(history.clone(), stability, Base::default());
            walk.go(named.time).unwrap();
            let kept = named.kept(&history, &walk.volatile).unwrap();
            let again = state::name(&history, named.contract, named.time, &walk.volatile, &kept);
            let image = Arc::new(walk.state(&kept).unwrap());
            let faults = Ext4Oracle::new(history.clone()).judge(named.time, &image).unwrap();
            assert!(!faults.is_empty(), "{name} breaks nothing when it is had again as {again}");
        }
    }
    for wrong in ["", "nbd", "nbd@1", "nbd@1:9", "nbd@999999:all", "best@1:all", "nbd@40:x", "nbd@0:1<y"] {
        let read = Named::parse(&history, wrong).and_then(|named| named.kept(&history, &[]));
        assert!(read.is_err(), "{wrong:?} names a state");
    }
}

proptest! {
    /// A file system that something else has written to is judged, too: whatever it says is followed nowhere.
    #[test]
    fn a_damaged_file_system_harms_nobody(damage in prop::collection::vec((0_u64..6000, any::<[u8; 8]>()), 1..30)) {
        let history = trace("ext4-4-writeback-ordinary");
        let stability = Arc::new(Contract::Nbd.stability(&history));
        let mut walk = Walk::new(history.clone(), stability, Base::default());
        walk.go(history.events.len() / 2).unwrap();
        let mut image = walk.durable.over();
        for (place, bytes) in damage {
            // Mostly where everything begins: the superblock, group descriptors, the first inodes, the journal.
            image.write(place * place, &bytes).unwrap();
        }
        Ext4Oracle::new(history.clone()).judge(walk.time, &Arc::new(image)).unwrap();
    }
}
