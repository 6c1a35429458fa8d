//! Proves that what is recorded is read again, that a recorder may be killed at any byte, and that damage is noticed.

use std::fs;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;
use recording::{Header, Marks, ReadError, Reader, Record, Recorder, Request, What, send_mark};

fn header() -> Header {
    Header { size: 1 << 30, flags: 0x10d, began_ns: 7, name: "disk".to_owned() }
}

fn recorded(all: &[(u16, What)]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary file");
    let path = dir.path().join("log");
    let recorder = Recorder::again(fs::File::create(&path).expect("a temporary file"), &header())
        .expect("a temporary file");
    for (number, (connection, what)) in all.iter().enumerate() {
        assert_eq!(recorder.record(*connection, what).expect("a temporary file"), number as u64 + 1);
    }
    fs::read(path).expect("a temporary file")
}

fn read(bytes: &[u8]) -> Result<(Vec<Record>, bool), ReadError> {
    let mut reader = Reader::new(bytes)?;
    assert_eq!(Header { began_ns: 7, ..reader.header().clone() }, header());
    let records = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
    Ok((records, reader.is_whole()))
}

fn things() -> impl Strategy<Value = What> {
    let data = prop::collection::vec(any::<u8>(), 1..600);
    let request =
        (any::<u64>(), 0_u64..1 << 40, any::<[u16; 2]>(), data).prop_map(|(cookie, offset, n, data)| {
            let length = data.len() as u64;
            let data = if data.iter().all(|byte| *byte == 0) { Vec::new() } else { data };
            What::Request(Request { cookie, offset, length, command: n[0], flags: n[1], data })
        });
    prop_oneof![
        request,
        (any::<u64>(), any::<u32>()).prop_map(|(request, error)| What::Answer { request, error }),
        "[^\n]{0,40}".prop_map(What::Mark),
        Just(What::Opened),
        Just(What::Closed),
    ]
}

proptest! {
    #[test]
    fn what_is_recorded_is_read(all in prop::collection::vec((any::<u16>(), things()), 0..20)) {
        let (records, whole) = read(&recorded(&all)).unwrap();
        prop_assert!(!whole);
        let told: Vec<_> = records.iter().map(|record| (record.connection, record.what.clone())).collect();
        prop_assert_eq!(told, all);
        prop_assert!(records.is_sorted_by_key(|record| record.at_ns));
    }

    #[test]
    fn a_recording_cut_anywhere_is_a_shorter_one(
        all in prop::collection::vec((any::<u16>(), things()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = recorded(&all);
        let cut = 4096 + cut.index(bytes.len() - 4096);
        let (records, _) = read(&bytes[..cut]).unwrap();
        prop_assert!(records.len() < all.len());
        prop_assert!(records.iter().zip(&all).all(|(record, (_, what))| record.what == *what));
    }

    #[test]
    fn a_changed_byte_is_noticed(
        all in prop::collection::vec((any::<u16>(), things()), 1..6),
        at in any::<prop::sample::Index>(),
        by in 1_u8..,
    ) {
        let mut bytes = recorded(&all);
        let (records, _) = read(&bytes).unwrap();
        let at = 4096 + at.index(bytes.len() - 4096);
        bytes[at] ^= by;
        // A length that has grown looks like a short end; nothing else that is read may differ. The last four bytes of
        // a head and its second mean nothing.
        match read(&bytes) {
            Ok((fewer, _)) => prop_assert!(records.starts_with(&fewer)),
            Err(ReadError::Damaged { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn anything_may_be_given_to_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut whole = recorded(&[]);
        whole.extend(bytes);
        let _ = read(&whole);
    }
}

#[test]
fn zeroes_take_no_room_and_the_end_is_told() {
    let zero =
        Request { cookie: 1, offset: 0, length: 1 << 20, command: 1, flags: 0, data: vec![0; 1 << 20] };
    let bytes = recorded(&[(1, What::Request(zero)), (0, What::End)]);
    assert!(bytes.len() < 4096 + 200, "{}", bytes.len());
    let (records, whole) = read(&bytes).unwrap();
    assert!(whole && records.len() == 2);
    assert!(
        matches!(&records[0].what, What::Request(request) if request.length == 1 << 20 && request.data.is_empty())
    );
    assert!(matches!(Reader::new(&b"something else"[..]), Err(ReadError::NoRecording)));
    assert!(matches!(Reader::new(&[1; 8192][..]), Err(ReadError::NoRecording)));
}

#[test]
fn marks_come_from_anywhere_and_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (log, socket) = (dir.path().join("log"), dir.path().join("marks"));
    let recorder = Arc::new(Recorder::begin(fs::File::create(&log).unwrap(), header()).unwrap());
    // One that was killed leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    Marks::listen(&socket).unwrap().take(recorder).unwrap();
    assert!(Marks::listen(&socket).is_err(), "two recorders at one socket");
    let precious = dir.path().join("precious");
    fs::write(&precious, "a disk image").unwrap();
    assert!(Marks::listen(&precious).is_err(), "what is no socket stays");
    assert_eq!(fs::read(&precious).unwrap(), b"a disk image");
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let socket = socket.clone();
            thread::spawn(move || {
                let mut stream = BufReader::new(UnixStream::connect(socket).unwrap());
                let marks = (0..10).map(|mark| format!("sender {sender} mark {mark}"));
                marks.map(|text| (send_mark(&mut stream, &text).unwrap(), text)).collect::<Vec<_>>()
            })
        })
        .collect();
    let (records, _) = read(&{
        let sent: Vec<_> = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        let bytes = fs::read(&log).unwrap();
        let (records, _) = read(&bytes).unwrap();
        for (seq, text) in sent {
            assert!(records.iter().any(|it| it.seq == seq && it.what == What::Mark(text.clone())));
        }
        bytes
    })
    .unwrap();
    assert_eq!(records.len(), 40);
    let mut stream = BufReader::new(UnixStream::connect(&socket).unwrap());
    assert!(send_mark(&mut stream, "two\nlines").is_err());
    assert!(send_mark(&mut stream, &"x".repeat(5000)).is_err());
}
