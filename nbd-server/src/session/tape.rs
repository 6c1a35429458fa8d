//! What a session writes down where its export is recorded: requests that change something before they run, and their
//! answers before they are sent.

use common::command::{Command, Fua, Hole, Span, Speed};
use common::proto::{CommandFlags, CommandType, WireError};
use recording::{Request, Tap};

/// A request that was written down.
pub(super) struct Taped<'a> {
    tap: &'a Tap,
    seq: u64,
}

/// Writes a request down, unless it only reads.
pub(super) fn received<'a>(tap: &'a Tap, cookie: u64, command: &Command, data: &[u8]) -> Option<Taped<'a>> {
    let (number, span, flags) = request(command)?;
    let Span { at: offset, len: length } = span;
    if length == 0 && *command != Command::Flush {
        return None;
    }
    let request = Request { cookie, offset, length, command: number.0, flags: flags.0, data: Vec::new() };
    let seq = tap.received(&request, data).inspect_err(ended).ok()?;
    Some(Taped { tap, seq })
}

impl Taped<'_> {
    /// Writes its answer down, before the client knows.
    pub(super) fn answers(self, error: WireError) {
        // The log has the reason; the recording has its end.
        let _ = self.tap.answers(self.seq, error.0).inspect_err(ended);
    }
}

/// Said once: a recorder that failed takes what follows and drops it.
fn ended(error: &std::io::Error) {
    tracing::error!(%error, "the recording ends here");
}

fn request(command: &Command) -> Option<(CommandType, Span, CommandFlags)> {
    let fua = |fua| if fua == Fua::Yes { CommandFlags::FUA } else { CommandFlags::NONE };
    let when = |holds, flag| if holds { flag } else { CommandFlags::NONE };
    Some(match *command {
        Command::Write(span, durable) => (CommandType::WRITE, span, fua(durable)),
        Command::Flush => (CommandType::FLUSH, Span { at: 0, len: 0 }, CommandFlags::NONE),
        Command::Trim(span, durable) => (CommandType::TRIM, span, fua(durable)),
        Command::WriteZeroes(span, how, durable) => {
            let how = when(how.hole == Hole::Forbidden, CommandFlags::NO_HOLE)
                | when(how.speed == Speed::Fast, CommandFlags::FAST_ZERO);
            (CommandType::WRITE_ZEROES, span, fua(durable) | how)
        }
        _ => return None,
    })
}
