//! The stream between a scripted client and a session.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use common::handshake::context::ReplyStyle;
use futures::io::{AsyncRead, AsyncWrite};

use super::replies::{Replies, Reply};
use super::requests::Request;

/// When the next request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// When all before it are answered.
    OneByOne,
    /// Now.
    AtOnce,
}

/// A client that sends its requests, listens, and closes.
pub(super) struct Script {
    to_send: VecDeque<Vec<u8>>,
    sent: usize,
    place: usize,
    pace: Pace,
    replies: Replies,
}

impl Script {
    pub(super) fn new(requests: &[Request], style: ReplyStyle, pace: Pace) -> Script {
        let to_send = requests.iter().map(|request| request.encode(style)).collect();
        let headers = requests.iter().map(|request| request.header).collect();
        Script { to_send, sent: 0, place: 0, pace, replies: Replies::new(headers, style) }
    }

    /// What the client has heard.
    pub(super) fn replies(self) -> Vec<Reply> {
        self.replies.end()
    }
}

impl nbd_server::session::Stream for Script {}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        // The session asks again whenever it has said something.
        let waits = self.pace == Pace::OneByOne && self.place == 0 && self.replies.answered() < self.sent;
        if waits && !self.to_send.is_empty() {
            return Poll::Pending;
        }
        let mut filled = 0;
        while let Some(piece) = self.to_send.front()
            && filled < buf.len()
        {
            let rest = &piece[self.place..];
            let len = rest.len().min(buf.len() - filled);
            buf[filled..filled + len].copy_from_slice(&rest[..len]);
            filled += len;
            if len < rest.len() {
                self.place += len;
                break;
            }
            self.to_send.pop_front();
            self.place = 0;
            self.sent += 1;
            if self.pace == Pace::OneByOne {
                break;
            }
        }
        Poll::Ready(Ok(filled))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.replies.hear(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
