//! Holds the two halves against each other on histories of all kinds: the states that a contract leads to, and the
//! judge that works out from the protocol's words what each byte may be. What one allows the other must not accuse, and
//! what a broken contract leads to is accused exactly if a promised byte is gone.

use std::fs::{self, File};
use std::sync::Arc;
use std::time::Duration;

use common::proto::{CommandFlags, CommandType};
use nbd_crash::contract::Contract;
use nbd_crash::dm_log;
use nbd_crash::explore::{Budget, Exploration, Outcome};
use nbd_crash::history::History;
use nbd_crash::image::{Base, Image, Rewrites};
use nbd_crash::oracle::Oracle;
use nbd_crash::oracle::raw::RawOracle;
use nbd_crash::state::{self, Kept, Named};
use nbd_crash::states::{Choice, subsets};
use nbd_crash::walk::Walk;
use proptest::prelude::*;
use recording::{Header, Recorder, Request, What};
use tempfile::TempDir;

/// Bytes of the export: a few pages, so that writes meet.
const SIZE: u64 = 5 * 4096;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A request; the range is cut to the export.
    Request { connection: u16, command: CommandType, fua: bool, offset: u64, length: u64, byte: u8 },
    /// One of the open requests is answered, sometimes with an error.
    Answer(prop::sample::Index, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let command = prop_oneof![
        6 => Just(CommandType::WRITE),
        1 => Just(CommandType::WRITE_ZEROES),
        1 => Just(CommandType::TRIM),
        3 => Just(CommandType::FLUSH),
    ];
    let place = prop_oneof![(0..40_u64).prop_map(|sector| sector * 512), 0..SIZE];
    let length = prop_oneof![(1..20_u64).prop_map(|sectors| sectors * 512), 1..3000_u64];
    let request = (1..4_u16, command, prop::bool::weighted(0.2), place, length, 1..=255_u8).prop_map(
        |(connection, command, fua, offset, length, byte)| Step::Request {
            connection,
            command,
            fua,
            offset,
            length,
            byte,
        },
    );
    let answer = (any::<prop::sample::Index>(), prop::bool::weighted(0.05));
    let step = prop_oneof![request, answer.prop_map(|(which, fails)| Step::Answer(which, fails))];
    prop::collection::vec(step, 1..40)
}

/// Records the steps; gives the recording's bytes.
fn recorded(steps: &[Step]) -> Vec<u8> {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("recording");
    let header = Header { size: SIZE, flags: 1, began_ns: 0, name: String::new() };
    let file = File::create_new(&path).expect("a new file");
    let recorder = Recorder::again(file, &header).expect("a recorder");
    let mut open: Vec<(u64, u16)> = Vec::new();
    for step in steps {
        match step {
            Step::Request { connection, command, fua, offset, length, byte } => {
                let flush = *command == CommandType::FLUSH;
                let (offset, length) = if flush { (0, 0) } else { (*offset, (*length).min(SIZE - offset)) };
                let data = if *command == CommandType::WRITE {
                    vec![*byte; usize::try_from(length).expect("short")]
                } else {
                    vec![]
                };
                let flags = if *fua && !flush { CommandFlags::FUA.0 } else { 0 };
                let request = Request { cookie: 0, offset, length, command: command.0, flags, data };
                let seq = recorder.record(*connection, &What::Request(request)).expect("recorded");
                open.push((seq, *connection));
            }
            Step::Answer(which, fails) if !open.is_empty() => {
                let (request, connection) = open.swap_remove(which.index(open.len()));
                let answer = What::Answer { request, error: if *fails { 5 } else { 0 } };
                recorder.record(connection, &answer).expect("recorded");
            }
            Step::Answer(..) => {}
        }
    }
    recorder.record(0, &What::End).expect("recorded");
    fs::read(path).expect("it is there")
}

fn history(steps: &[Step]) -> Arc<History> {
    Arc::new(History::read(&recorded(steps)[..]).expect("what was recorded is read"))
}

fn explored(history: &Arc<History>, contract: Contract) -> Outcome {
    let exploration = Exploration {
        history: history.clone(),
        base: Base::default(),
        contract,
        choice: Choice { seed: 1, unit: 512, random: 8 },
        only_after_marks: false,
        budget: Budget { states: 400, time: Duration::MAX },
        violations_max: 1,
        threads: 1,
    };
    let raw = || RawOracle::new(history.clone(), history.clone(), Base::default());
    exploration.run(&|| Ok(Box::new(raw()) as Box<dyn Oracle>), &mut |_, _| {}).expect("it can be judged")
}

/// The content of a state, byte by byte.
fn bytes(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).expect("small")];
    image.read(0, &mut bytes).expect("memory");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_the_contract_allows_is_not_accused(steps in steps()) {
        let history = history(&steps);
        for contract in [Contract::Nbd, Contract::Writethrough] {
            let outcome = explored(&history, contract);
            prop_assert!(outcome.violations.is_empty(), "{:?}: {:#?}", contract, outcome.violations);
        }
    }

    #[test]
    fn states_have_names_and_equal_hashes_mean_equal_bytes(steps in steps(), round in 0..2_u64) {
        let history = history(&steps);
        for contract in [Contract::Nbd, Contract::Unsafe, Contract::OwnConnection] {
            let stability = Arc::new(contract.stability(&history));
            let mut walk = Walk::new(history.clone(), stability, Base::default());
            let mut seen: std::collections::HashMap<u64, Vec<u8>> = std::collections::HashMap::new();
            for time in 0..=history.events.len() {
                walk.go(time).unwrap();
                let shows = |write: &usize| walk.durable.shows(*write, &history.writes[*write]);
                prop_assert!(walk.volatile.iter().all(shows), "what is hidden for good cannot be lost");
                let choice = Choice { seed: 3, unit: 512, random: 4 };
                for kept in subsets(&history, &walk.volatile, choice, round, time as u64) {
                    let image = walk.state(&kept).unwrap();
                    let content = bytes(&image);
                    prop_assert_eq!(seen.entry(image.hash).or_insert_with(|| content.clone()), &content);
                    let name = state::name(&history, contract, time, &walk.volatile, &kept);
                    let named = Named::parse(&history, &name).unwrap();
                    prop_assert_eq!(named.contract, contract);
                    let again = named.kept(&history, &walk.volatile).unwrap();
                    prop_assert_eq!(content, bytes(&walk.state(&again).unwrap()));
                }
            }
        }
    }

    #[test]
    fn what_is_lost_is_accused_if_it_was_promised(steps in steps()) {
        let history = history(&steps);
        let spec = Arc::new(Contract::Nbd.stability(&history));
        let mut walk = Walk::new(history.clone(), spec.clone(), Base::default());
        let mut oracle = RawOracle::new(history.clone(), history.clone(), Base::default());
        let end = history.events.len();
        walk.go(end).unwrap();
        // All that could be kept is kept, but for one write that was promised and that nothing later has touched.
        for lost in 0..history.writes.len() {
            let write = &history.writes[lost];
            let touched = |other: &nbd_crash::history::Write| {
                other.seq != write.seq && other.offset < write.end() && other.end() > write.offset
            };
            let alone = !history.writes.iter().any(touched);
            let is_data = matches!(write.content, nbd_crash::history::Content::Data(_));
            if !spec.is_stable(lost, end) || !alone || !is_data {
                continue;
            }
            let mut image = Image::new(Base::default());
            for other in (0..history.writes.len()).filter(|other| *other != lost) {
                image.apply(other, &history.writes, |_| true, &mut Rewrites::default()).unwrap();
            }
            let faults = oracle.judge(end, &Arc::new(image)).unwrap();
            prop_assert!(!faults.is_empty(), "write {} is gone and nobody says so", write.seq);
        }
        let kept: Vec<Kept> = walk.volatile.iter().copied().map(Kept::whole).collect();
        let image = walk.state(&kept).unwrap();
        prop_assert!(oracle.judge(end, &Arc::new(image)).unwrap().is_empty());
    }

    #[test]
    fn nothing_that_is_imported_harms_anybody(
        head in prop::collection::vec(any::<u8>(), 0..200),
        entries in prop::collection::vec((prop::collection::vec(0..40_u64, 4), any::<[u8; 64]>()), 0..6),
    ) {
        let mut log = vec![0; 512];
        for (at, number) in [(0, 0x006a_7366_7773_6872), (8, 1), (16, entries.len() as u64)] {
            log[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
        }
        log[24..28].copy_from_slice(&512_u32.to_le_bytes());
        log[40..40 + head.len().min(400)].copy_from_slice(&head[..head.len().min(400)]);
        for (numbers, bytes) in &entries {
            let mut sector = vec![0; 512];
            for (place, number) in sector.chunks_exact_mut(8).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
            sector[32..96].copy_from_slice(bytes);
            log.extend(sector);
            log.extend(vec![7; 2048]);
        }
        let directory = TempDir::new().unwrap();
        let to = directory.path().join("recording");
        if dm_log::import(&log[..], Some(1 << 20), File::create_new(&to).unwrap()).is_ok() {
            let _ = History::read(&fs::read(&to).unwrap()[..]);
        }
    }
}

#[test]
fn a_torn_write_leaves_what_its_name_says() {
    let write = Step::Request {
        connection: 1,
        command: CommandType::WRITE,
        fua: false,
        offset: 1024,
        length: 4096,
        byte: 7,
    };
    let history = history(&[write]);
    let left = |name: &str| {
        let named = Named::parse(&history, name).unwrap();
        let stability = Arc::new(named.contract.stability(&history));
        let mut walk = Walk::new(history.clone(), stability, Base::default());
        walk.go(named.time).unwrap();
        let kept = named.kept(&history, &walk.volatile).unwrap();
        let bytes = bytes(&walk.state(&kept).unwrap());
        bytes
            .chunks(512)
            .map(|sector| if sector.iter().all(|byte| *byte == 7) { '7' } else { '.' })
            .collect::<String>()
    };
    assert_eq!(&left("nbd@1:none")[..12], "............");
    assert_eq!(&left("nbd@1:all")[..12], "..77777777..");
    assert_eq!(&left("nbd@1:1<3")[..12], "..777.......");
    assert_eq!(&left("nbd@1:1/a1")[..12], "..7....7.7..");
}

#[test]
fn a_whole_device_that_is_thrown_away_costs_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("recording");
    let size = 1_u64 << 44;
    let header = Header { size, flags: 1, began_ns: 0, name: String::new() };
    let recorder = Recorder::again(File::create_new(&path).unwrap(), &header).unwrap();
    let request = |command: CommandType, offset, length, data| {
        What::Request(Request { cookie: 0, offset, length, command: command.0, flags: 0, data })
    };
    for (seq, request) in (1..).step_by(2).zip([
        request(CommandType::WRITE, 4096, 512, vec![1; 512]),
        request(CommandType::TRIM, 0, size, vec![]),
        request(CommandType::WRITE, size - 512, 512, vec![2; 512]),
        request(CommandType::FLUSH, 0, 0, vec![]),
        request(CommandType::TRIM, 0, size, vec![]),
    ]) {
        recorder.record(1, &request).unwrap();
        recorder.record(1, &What::Answer { request: seq, error: 0 }).unwrap();
    }
    let history = Arc::new(History::open(&path).unwrap());
    assert!(explored(&history, Contract::Nbd).violations.is_empty());
    assert!(!explored(&history, Contract::NoFlush).violations.is_empty());
}
