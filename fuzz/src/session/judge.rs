//! What the answers to some requests must be.

use common::command::{Command, ContextSet, Extents, Span, Terms};
use common::proto::{CommandFlags, WireError};
use nbd_server::session::End;

use super::replies::Reply;
use super::requests::Request;
use super::script::Pace;

/// The flag of `base:allocation` for what reads as zero.
const ZERO: u64 = 2;

/// A model of the export, and what was asked of it.
pub(super) struct Judge<'a> {
    requests: &'a [Request],
    terms: &'a Terms,
    pace: Pace,
    /// What each byte must be, where that is known.
    bytes: Vec<Option<u8>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(requests: &'a [Request], terms: &'a Terms, pace: Pace) -> Judge<'a> {
        Judge { requests, terms, pace, bytes: vec![Some(0); len(terms.size)] }
    }

    /// Holds the answers against the requests.
    pub(super) fn judge(mut self, end: &End, replies: &[Reply]) {
        // A connection that breaks owes nothing; one request at a time was answered before the last.
        let owes = self.pace == Pace::OneByOne || matches!(end, End::Disconnected);
        let disconnects = self.requests.last().is_some_and(Request::is_last);
        let asked = self.requests.len() - usize::from(disconnects);
        for request in &self.requests[..asked] {
            let cookie = request.header.cookie;
            let mut answers = replies.iter().filter(|reply| reply.cookie == cookie);
            match answers.next() {
                Some(reply) => self.one(request, reply),
                None => assert!(!owes, "no answer to {request:?}; {end}"),
            }
            assert!(answers.next().is_none(), "two answers to {request:?}");
        }
        assert!(replies.len() <= asked, "an answer to a request that was not whole");
    }

    fn one(&mut self, request: &Request, reply: &Reply) {
        let header = &request.header;
        let admitted = header.admit(self.terms).map_err(|refusal| refusal.error);
        let command = admitted.and_then(|command| match command {
            Command::Filter => header.filter(self.terms, &request.payload),
            other => Ok(other),
        });
        let command = match command {
            Ok(command) => command,
            Err(error) => {
                assert_eq!(reply.error, error, "{header:?}");
                assert!(reply.data.is_empty() && reply.extents.is_empty());
                return;
            }
        };
        if reply.error == WireError::ENOTSUP && header.flags.contains(CommandFlags::FAST_ZERO) {
            return;
        }
        assert_eq!(reply.error, WireError::OK, "{header:?}");
        match command {
            Command::Read(span, _) => self.read(span, reply, header.flags.contains(CommandFlags::DF)),
            Command::Write(span, _) => {
                let bytes = request.payload.iter().copied().map(Some);
                self.bytes.splice(range(span), bytes);
            }
            Command::WriteZeroes(span, ..) => self.bytes[range(span)].fill(Some(0)),
            Command::Trim(span, _) => self.bytes[range(span)].fill(None),
            Command::BlockStatus(span, extents, asked) => self.status(span, extents, asked, reply),
            Command::Flush | Command::Cache(_) | Command::Filter | Command::Disconnect => {
                assert!(reply.data.is_empty() && reply.extents.is_empty());
            }
        }
    }

    /// All of the range, each byte once, and what the model says.
    fn read(&self, span: Span, reply: &Reply, whole: bool) {
        assert!(!whole || reply.data.len() <= 1, "DF forbids more than one chunk");
        let mut chunks: Vec<_> = reply.data.iter().collect();
        chunks.sort_by_key(|(at, _)| *at);
        let mut at = span.at;
        for (start, data) in chunks {
            assert_eq!(*start, at, "chunks neither overlap nor leave a gap");
            at += data.len() as u64;
            if self.pace == Pace::AtOnce {
                continue;
            }
            let place = len(*start);
            for (byte, known) in data.iter().zip(&self.bytes[place..place + data.len()]) {
                assert!(known.is_none_or(|known| known == *byte), "stale or foreign data in {span:?}");
            }
        }
        assert_eq!(at, span.end(), "a READ tells all of {span:?}");
    }

    fn status(&self, span: Span, extents: Extents, asked: ContextSet, reply: &Reply) {
        let [(context, told)] = reply.extents.as_slice() else { panic!("one context was selected") };
        assert!(*context == 1 && asked.contains(1));
        let (last, before) = told.split_last().expect("at least one extent");
        let sum: u64 = before.iter().map(|extent| extent.length).sum();
        assert!(sum < span.len, "only the last extent may go beyond the range");
        if extents == Extents::One {
            assert!(before.is_empty() && last.length <= span.len, "one extent, within the range");
        }
        let mut at = len(span.at);
        for extent in told {
            let end = at.saturating_add(len(extent.length)).min(self.bytes.len());
            if extent.status & ZERO != 0 && self.pace == Pace::OneByOne {
                let mut bytes = self.bytes[at..end].iter().flatten();
                assert!(bytes.all(|byte| *byte == 0), "what is said to be zero is not");
            }
            at = end;
        }
    }
}

fn range(span: Span) -> std::ops::Range<usize> {
    len(span.at)..len(span.end())
}

fn len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("it is inside the export")
}
