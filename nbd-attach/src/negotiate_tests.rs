//! Proves that no server, however hostile, makes the handshake crash, hang or read a byte too
//! many: bad magic, absurd lengths, an end of file after every byte, silence, dribbling, noise.

use super::*;
use common::proto::{IHAVEOPT, NBDMAGIC, OPTION_REPLY_MAGIC, TransmissionFlags};
use proptest::prelude::*;
use tokio::net::UnixStream;

const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 1 << 20;
const FLAGS: u16 = 0b101;

fn greeting() -> Vec<u8> {
    [&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes(), &3u16.to_be_bytes()].concat()
}

fn reply(kind: u32, claimed: u32, data: &[u8]) -> Vec<u8> {
    let option_go = 7u32;
    let words = [option_go, kind, claimed].map(u32::to_be_bytes).concat();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &words, data].concat()
}

/// All a good server sends, GO granted.
fn good_server() -> Vec<u8> {
    let info = [&0u16.to_be_bytes()[..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()].concat();
    [greeting(), reply(3, 12, &info), reply(1, 0, &[])].concat()
}

/// What the client makes of a server that sends these bytes and then closes (or stays).
async fn against(bytes: &[u8], then: Then) -> Result<Export, NegotiateError> {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(bytes).await.unwrap();
    let patience = match then {
        Then::Close => {
            theirs.shutdown().await.unwrap();
            PATIENCE
        }
        Then::Stay => Duration::from_millis(100),
    };
    negotiate(&mut ours, "x", patience).await
}

enum Then {
    Close,
    Stay,
}

#[tokio::test]
async fn a_good_server_is_understood_and_not_a_byte_too_many_read() {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[good_server(), b"kernel's".to_vec()].concat()).await.unwrap();
    let export = negotiate(&mut ours, "x", PATIENCE).await.unwrap();
    assert_eq!((export.size, export.flags), (SIZE, TransmissionFlags(FLAGS)));
    let mut rest = [0; 8];
    ours.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"kernel's");
}

#[tokio::test]
async fn an_end_after_any_byte_is_an_error() {
    let all = good_server();
    for end in 0..all.len() {
        let error = against(&all[..end], Then::Close).await.unwrap_err();
        assert!(matches!(error, NegotiateError::Closed), "after {end}: {error}");
    }
}

#[tokio::test]
async fn silence_after_any_stage_ends_at_the_deadline() {
    let all = good_server();
    for end in [0, 5, greeting().len(), greeting().len() + 20, all.len() - 1] {
        let error = against(&all[..end], Then::Stay).await.unwrap_err();
        assert!(matches!(error, NegotiateError::Deadline(_)), "after {end}: {error}");
    }
}

#[tokio::test]
async fn a_dribbling_server_has_no_more_time_than_a_silent_one() {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let dribble = tokio::spawn(async move {
        // Informational replies without end, each complete and harmless.
        let harmless = reply(3, 4, &[0xff, 0xff, 0, 0]);
        theirs.write_all(&greeting()).await?;
        loop {
            theirs.write_all(&harmless).await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        #[expect(unreachable_code)]
        io::Result::Ok(())
    });
    let error = negotiate(&mut ours, "x", Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, NegotiateError::Deadline(_)), "{error}");
    dribble.abort();
}

#[tokio::test]
async fn wrong_words_are_named() {
    let http = against(b"HTTP/1.1 400 Bad Request\r\n\r\n", Then::Close).await.unwrap_err();
    assert!(http.to_string().contains("does not speak NBD"), "{http}");
    let huge = against(&[greeting(), reply(3, u32::MAX, &[])].concat(), Then::Close).await.unwrap_err();
    assert!(huge.to_string().contains("more than any sensible reply"), "{huge}");
    let unknown = reply((1 << 31) + 6, 4, b"gone");
    let unknown = against(&[greeting(), unknown].concat(), Then::Close).await.unwrap_err();
    assert!(unknown.to_string().contains("no export of that name"), "{unknown}");
    let tls = against(&[greeting(), reply((1 << 31) + 5, 0, &[])].concat(), Then::Close).await.unwrap_err();
    assert!(tls.to_string().contains("requires TLS"), "{tls}");
    let empty = against(&[greeting(), reply(1, 0, &[])].concat(), Then::Close).await;
    assert!(empty.is_err(), "an export never described");
}

#[tokio::test]
async fn a_name_beyond_the_spec_never_reaches_the_server() {
    let (mut ours, _theirs) = UnixStream::pair().unwrap();
    let error = negotiate(&mut ours, &"x".repeat(5000), PATIENCE).await.unwrap_err();
    assert!(matches!(error, NegotiateError::Client(ClientError::Name)), "{error}");
}

fn run(bytes: &[u8]) -> Result<Export, NegotiateError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(against(bytes, Then::Close))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise_after_the_greeting_ends_without_a_crash(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(run(&[greeting(), noise].concat()).is_err());
    }

    #[test]
    fn a_damaged_byte_never_crashes(at in 0usize..60, byte in any::<u8>()) {
        let mut bytes = good_server();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = run(&bytes);
    }
}
