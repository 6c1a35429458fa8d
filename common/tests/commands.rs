//! Which error answers which bad request: one row per sentence of the spec's "Error values".

use common::command::{
    Chunks, Command, ContextSet, Extents, Fua, Hole, Refusal, RequestHeader, Span, Speed, Terms, Zeroing,
};
use common::handshake::context::ReplyStyle;
use common::proto::*;

const SIZE: u64 = 1 << 20;

fn terms(flags: TransmissionFlags) -> Terms {
    Terms {
        size: SIZE,
        flags: TransmissionFlags::HAS_FLAGS | flags,
        block_min: 1,
        payload_max: PAYLOAD_MAX,
        contexts: 0,
        style: ReplyStyle::Simple,
    }
}

fn everything() -> Terms {
    terms(
        TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES,
    )
}

fn header(command: CommandType, offset: u64, length: u32, flags: u16) -> RequestHeader {
    RequestHeader { flags: CommandFlags(flags), command, cookie: 7, offset, length: length.into() }
}

fn zeroing(hole: Hole) -> Zeroing {
    Zeroing { hole, speed: Speed::Any }
}

#[test]
fn good_requests_become_commands() {
    use CommandType as C;
    let span = Span { at: 512, len: 512 };
    let rows = [
        (header(C::READ, 512, 512, 0), Command::Read(span, Chunks::One)),
        (header(C::READ, 512, 512, 1), Command::Read(span, Chunks::One)),
        (header(C::WRITE, 512, 512, 0), Command::Write(span, Fua::No)),
        (header(C::WRITE, 512, 512, 1), Command::Write(span, Fua::Yes)),
        (header(C::WRITE, SIZE, 0, 0), Command::Write(Span { at: SIZE, len: 0 }, Fua::No)),
        (header(C::FLUSH, 0, 0, 1), Command::Flush),
        (header(C::TRIM, 512, 512, 1), Command::Trim(span, Fua::Yes)),
        (header(C::WRITE_ZEROES, 512, 512, 0), Command::WriteZeroes(span, zeroing(Hole::Allowed), Fua::No)),
        (
            header(C::WRITE_ZEROES, 512, 512, 3),
            Command::WriteZeroes(span, zeroing(Hole::Forbidden), Fua::Yes),
        ),
        (header(C::DISC, 5, 5, 0xff), Command::Disconnect),
    ];
    for (header, command) in rows {
        assert_eq!(header.admit(&everything()), Ok(command), "{header:?}");
    }
}

#[test]
fn bad_requests_get_the_error_the_spec_names() {
    use CommandType as C;
    let read_only = terms(TransmissionFlags::READ_ONLY);
    let rows = [
        (header(C::READ, SIZE, 1, 0), everything(), WireError::EINVAL),
        (header(C::READ, u64::MAX, 2, 0), everything(), WireError::EINVAL),
        (header(C::WRITE, SIZE - 1, 2, 0), everything(), WireError::ENOSPC),
        (header(C::WRITE, u64::MAX, u32::MAX, 0), everything(), WireError::ENOSPC),
        (header(C::WRITE_ZEROES, SIZE, 1, 0), everything(), WireError::ENOSPC),
        (header(C::TRIM, SIZE, 1, 0), everything(), WireError::EINVAL),
        (header(C::WRITE, 0, 1, 0), read_only, WireError::EPERM),
        (header(C::TRIM, 0, 1, 0), read_only, WireError::EPERM),
        (header(C::WRITE_ZEROES, 0, 1, 0), read_only, WireError::EPERM),
        (header(C::FLUSH, 0, 0, 0), read_only, WireError::EINVAL),
        (header(C::FLUSH, 1, 0, 0), everything(), WireError::EINVAL),
        (header(C::TRIM, 0, 1, 0), terms(TransmissionFlags::NONE), WireError::EINVAL),
        (header(C::WRITE, 0, 1, 1), terms(TransmissionFlags::NONE), WireError::EINVAL),
        (header(C::WRITE, 0, 1, 2), everything(), WireError::EINVAL),
        (header(C::READ, 0, 1, 4), everything(), WireError::EINVAL),
        (header(C::WRITE_ZEROES, 0, 1, 16), everything(), WireError::EINVAL),
        (header(C(99), 0, 0, 0), everything(), WireError::EINVAL),
    ];
    for (header, terms, error) in rows {
        let skip = if header.command == C::WRITE { header.length } else { 0 };
        assert_eq!(header.admit(&terms), Err(Refusal { error, skip }), "{header:?}");
    }
}

#[test]
fn sizes_and_alignment_are_enforced() {
    let strict = Terms { block_min: 512, payload_max: 4096, ..everything() };
    let error = |header: RequestHeader| header.admit(&strict).unwrap_err().error;
    assert_eq!(error(header(CommandType::READ, 0, 8192, 0)), WireError::EOVERFLOW);
    assert_eq!(error(header(CommandType::WRITE, 0, 8192, 0)), WireError::EINVAL);
    assert_eq!(error(header(CommandType::READ, 1, 512, 0)), WireError::EINVAL);
    assert_eq!(error(header(CommandType::TRIM, 0, 100, 0)), WireError::EINVAL);
    assert!(header(CommandType::WRITE_ZEROES, 0, 1 << 20, 0).admit(&strict).is_ok());
}

#[test]
fn block_status_needs_a_context_and_structured_replies_bring_df() {
    let (status, read) = (CommandType::BLOCK_STATUS, CommandType::READ);
    let span = Span { at: 512, len: 512 };
    let (req_one, df) = (CommandFlags::REQ_ONE.0, CommandFlags::DF.0);
    let refused = |error| Err(Refusal { error, skip: 0 });
    let with = Terms { contexts: 1, style: ReplyStyle::Structured, ..terms(TransmissionFlags::SEND_DF) };
    assert_eq!(
        header(status, 512, 512, 0).admit(&with),
        Ok(Command::BlockStatus(span, Extents::Any, ContextSet::ALL))
    );
    assert_eq!(
        header(status, 512, 512, req_one).admit(&with),
        Ok(Command::BlockStatus(span, Extents::One, ContextSet::ALL))
    );
    assert_eq!(header(read, 512, 512, df).admit(&with), Ok(Command::Read(span, Chunks::One)));
    for bad in [header(status, 512, 0, 0), header(status, SIZE, 1, 0), header(status, 512, 512, df)] {
        assert_eq!(bad.admit(&with), refused(WireError::EINVAL), "{bad:?}");
    }
    assert_eq!(header(status, 512, 512, 0).admit(&everything()), refused(WireError::EINVAL));
    assert_eq!(header(read, 512, 512, df).admit(&everything()), refused(WireError::EINVAL));
}
