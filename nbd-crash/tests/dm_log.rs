//! Proves the exchange with dm-log-writes: a recording comes back as it was, the log is byte for byte what the kernel's
//! reader expects, and a log of the kernel's is read.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use common::proto::{CommandFlags, CommandType};
use flate2::read::GzDecoder;
use nbd_crash::dm_log;
use recording::{Header, Reader, Record, Recorder, Request, What};
use tempfile::TempDir;

fn records(bytes: &[u8]) -> (Header, Vec<Record>, bool) {
    let mut reader = Reader::new(bytes).expect("the test can be set up");
    let records = reader.by_ref().collect::<Result<_, _>>().expect("the test can be set up");
    (reader.header().clone(), records, reader.is_whole())
}

fn export(recording: &[u8]) -> Vec<u8> {
    let directory = TempDir::new().expect("the test can be set up");
    let log = directory.path().join("log");
    dm_log::export(
        Reader::new(recording).expect("the test can be set up"),
        File::create_new(&log).expect("the test can be set up"),
    )
    .expect("the test can be set up");
    fs::read(log).expect("the test can be set up")
}

fn import(log: &[u8], size: Option<u64>) -> anyhow::Result<Vec<u8>> {
    let directory = TempDir::new()?;
    let recording = directory.path().join("recording");
    dm_log::import(BufReader::new(log), size, File::create_new(&recording)?)?;
    Ok(fs::read(recording)?)
}

#[test]
fn recordings_come_back_as_they_were() {
    for name in ["ext4-4-writeback-ordinary", "xfs-4-early-ack-ordinary"] {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("traces").join(name).with_extension("nbdrec.gz");
        let mut recording = Vec::new();
        GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut recording).unwrap();
        let again = import(&export(&recording), None).unwrap();
        let (before, after) = (records(&recording), records(&again));
        assert_eq!(before.0, after.0);
        let differs = before.1.iter().zip(&after.1).position(|(before, after)| {
            (before.seq, &before.what, before.connection) != (after.seq, &after.what, after.connection)
                || (before.what != What::End && before.at_ns != after.at_ns)
        });
        assert_eq!((differs, before.1.len(), before.2), (None, after.1.len(), after.2), "{name}");
    }
}

/// A recording of two writes, of which one is flushed, a FUA, a mark, and a write that is never answered.
fn small() -> Vec<u8> {
    let directory = TempDir::new().expect("the test can be set up");
    let path = directory.path().join("recording");
    let header = Header { size: 1 << 20, flags: 1, began_ns: 5, name: "d".to_owned() };
    let recorder = Recorder::again(File::create_new(&path).expect("the test can be set up"), &header)
        .expect("the test can be set up");
    let write = |offset, byte, fua| {
        let flags = if fua { CommandFlags::FUA.0 } else { 0 };
        let (command, data) = (CommandType::WRITE.0, vec![byte; 1024]);
        What::Request(Request { cookie: 3, offset, length: 1024, command, flags, data })
    };
    let flush =
        Request { cookie: 4, offset: 0, length: 0, command: CommandType::FLUSH.0, flags: 0, data: vec![] };
    let ok = |request| What::Answer { request, error: 0 };
    let all = [
        write(4096, 1, false),      // 1
        ok(1),                      // 2
        What::Request(flush),       // 3
        write(8192, 2, false),      // 4
        ok(4),                      // 5: after the flush was received
        ok(3),                      // 6
        write(512, 3, true),        // 7
        ok(7),                      // 8
        What::Mark("m".to_owned()), // 9
        write(0, 4, false),         // 10
        What::End,                  // 11
    ];
    for what in &all {
        recorder.record(1, what).expect("the test can be set up");
    }
    fs::read(path).expect("the test can be set up")
}

/// The first 32 bytes of an entry, as struct log_write_entry has them; and its data.
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    length: u64,
    data: Vec<u8>,
}

/// Reads a log as log-writes.c of xfstests does, with its checks.
fn entries(log: &[u8]) -> Vec<Entry> {
    let u64_at = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().expect("the test can be set up"));
    assert_eq!((u64_at(0), u64_at(8)), (0x006a_7366_7773_6872, 1));
    assert_eq!(u32::from_le_bytes(log[24..28].try_into().expect("the test can be set up")), 512);
    let mut at = 512;
    let mut all = Vec::new();
    for _ in 0..u64_at(16) {
        let (sector, sectors, flags, length) = (u64_at(at), u64_at(at + 8), u64_at(at + 16), u64_at(at + 24));
        assert!(flags != 0 || sectors != 0, "an entry that is nothing");
        assert!(flags & 8 != 0 || log[at + 32] == 0, "an entry with text that is no mark");
        let text = flags & 8 != 0;
        let len = if flags & 4 != 0 || text {
            0
        } else {
            usize::try_from(sectors).expect("the test can be set up") * 512
        };
        let from = if text { at + 32 } else { at + 512 };
        let take = if text { usize::try_from(length).expect("the test can be set up") } else { len };
        all.push(Entry { sector, sectors, flags, length, data: log[from..from + take].to_vec() });
        at += 512 + len;
    }
    assert_eq!(at, log.len(), "bytes that belong to no entry");
    all
}

#[test]
fn a_log_is_what_its_readers_expect() {
    let all = entries(&export(&small()));
    let told: Vec<_> =
        all.iter().map(|it| (it.sector, it.sectors, it.flags, it.length, it.data.first().copied())).collect();
    assert_eq!(
        told,
        [
            // What a flush covers stands before it; what was answered while it ran does not.
            (8, 2, 0, 0, Some(1)),
            (0, 0, 1, 0, None),
            (1, 2, 2, 0, Some(3)),
            (0, 0, 8, 1, Some(b'm')),
            (16, 2, 0, 0, Some(2)),
            (0, 2, 0, 0, Some(4)),
            (0, 0, 8, 17, Some(b'd')),
        ]
    );
    assert_eq!(all[6].data, b"dm-log-writes-end");
}

#[test]
fn a_log_of_the_kernels_is_read() {
    let mut log = vec![0; 512];
    let mut entry = |sector: u64, sectors: u64, flags: u64, text: &[u8], data: &[u8]| {
        let mut head = vec![0; 512];
        for (place, number) in head.chunks_exact_mut(8).zip([sector, sectors, flags, text.len() as u64]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        head[32..32 + text.len()].copy_from_slice(text);
        log.extend(head);
        log.extend(data);
    };
    entry(8, 1, 0, b"", &[1; 512]);
    entry(0, 0, 1, b"", b"");
    entry(9, 1, 1 | 2, b"", &[2; 512]);
    entry(16, 8, 4, b"", b"");
    entry(0, 0, 8, b"here", b"");
    for (at, number) in [(0, 0x006a_7366_7773_6872), (8, 1), (16, 5)] {
        log[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
    }
    log[24..28].copy_from_slice(&512_u32.to_le_bytes());
    assert!(import(&log, None).unwrap_err().to_string().contains("--size"));
    let (header, records, whole) = records(&import(&log, Some(1 << 20)).unwrap());
    assert_eq!((header.size, whole), (1 << 20, false));
    let told: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.what {
            What::Request(it) => Some((it.command, it.offset, it.length, it.flags, it.data.first().copied())),
            What::Mark(text) => Some((99, text.len() as u64, 0, 0, None)),
            _ => None,
        })
        .collect();
    let (write, flush, trim) = (CommandType::WRITE.0, CommandType::FLUSH.0, CommandType::TRIM.0);
    assert_eq!(
        told,
        [
            (write, 4096, 512, 0, Some(1)),
            (flush, 0, 0, 0, None),
            (flush, 0, 0, 0, None),
            (write, 4608, 512, 1, Some(2)),
            (trim, 8192, 4096, 0, None),
            (99, 4, 0, 0, None),
        ]
    );
    assert!(import(b"something else", None).is_err());
    assert!(import(&[0; 4096], None).is_err());
}
