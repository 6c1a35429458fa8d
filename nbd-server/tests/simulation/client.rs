//! A client that sends requests and looks at replies, one byte pipe away from a session.

use common::command::RequestHeader;
use common::proto::{CHUNK_HEADER_LEN, CommandFlags, CommandType, SIMPLE_REPLY_HEADER_LEN, WireError};
use common::reply::{ChunkHeader, SimpleReply};
use futures::channel::{mpsc, oneshot};
use nbd_server::session::{End, Stop};

use crate::pipe;

/// One connection in transmission, from the client's side.
pub(crate) struct Client {
    pipe: Option<pipe::End>,
    stop: mpsc::UnboundedSender<Stop>,
    end: oneshot::Receiver<End>,
    next_cookie: u64,
}

impl Client {
    pub(crate) fn new(
        pipe: pipe::End,
        stop: mpsc::UnboundedSender<Stop>,
        end: oneshot::Receiver<End>,
    ) -> Client {
        Client { pipe: Some(pipe), stop, end, next_cookie: 1 }
    }

    /// Sends raw bytes.
    pub(crate) fn send(&self, bytes: &[u8]) {
        self.pipe.as_ref().expect("connected").send(bytes);
    }

    /// Sends a request; returns its cookie.
    pub(crate) fn ask(&mut self, command: CommandType, at: u64, len: u32, flags: CommandFlags) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = Vec::new();
        RequestHeader { flags, command, cookie, offset: at, length: len.into() }.encode(&mut bytes);
        self.send(&bytes);
        cookie
    }

    /// Sends a WRITE of `len` times `byte`.
    pub(crate) fn write(&mut self, at: u64, len: u32, byte: u8, flags: CommandFlags) -> u64 {
        let cookie = self.ask(CommandType::WRITE, at, len, flags);
        self.send(&vec![byte; len as usize]);
        cookie
    }

    /// Sends a FLUSH.
    pub(crate) fn flush(&mut self) -> u64 {
        self.ask(CommandType::FLUSH, 0, 0, CommandFlags::NONE)
    }

    /// The replies that have arrived, none of which carries data.
    pub(crate) fn replies(&mut self) -> Vec<(u64, WireError)> {
        std::iter::from_fn(|| self.header()).collect()
    }

    /// The next reply; `len_of` tells how much data a success carries.
    pub(crate) fn reply(&mut self, len_of: impl Fn(u64) -> usize) -> Option<(u64, WireError, Vec<u8>)> {
        let (cookie, error) = self.header()?;
        let len = if error == WireError::OK { len_of(cookie) } else { 0 };
        let data = self.pipe.as_ref()?.take(len).expect("the data follows");
        Some((cookie, error, data))
    }

    /// The next reply, which carries `len` bytes if it is a success.
    pub(crate) fn data(&mut self, len: usize) -> Option<(u64, Result<Vec<u8>, WireError>)> {
        let (cookie, error) = self.header()?;
        let result = match error {
            WireError::OK => Ok(self.pipe.as_ref()?.take(len).expect("the data follows")),
            error => Err(error),
        };
        Some((cookie, result))
    }

    /// The next chunk of a structured reply.
    pub(crate) fn chunk(&mut self) -> Option<(ChunkHeader, Vec<u8>)> {
        let bytes = self.pipe.as_ref()?.take(CHUNK_HEADER_LEN)?;
        let header = ChunkHeader::decode(&bytes.try_into().expect("twenty bytes")).expect("a chunk");
        let payload = self.pipe.as_ref()?.take(header.length as usize).expect("the payload follows");
        Some((header, payload))
    }

    /// Vanishes like a client whose machine died.
    pub(crate) fn vanish(&mut self) {
        self.pipe = None;
    }

    /// Says that nothing more will be sent.
    pub(crate) fn close(&self) {
        self.pipe.as_ref().expect("connected").close();
    }

    /// Tells the session to stop.
    pub(crate) fn stop(&self, how: Stop) {
        self.stop.unbounded_send(how).expect("the session lives");
    }

    /// How the session ended, if it has.
    pub(crate) fn end(&mut self) -> Option<End> {
        self.end.try_recv().expect("the session never just disappears")
    }

    fn header(&mut self) -> Option<(u64, WireError)> {
        let bytes = self.pipe.as_ref()?.take(SIMPLE_REPLY_HEADER_LEN)?;
        let reply = SimpleReply::decode(&bytes.try_into().expect("sixteen bytes")).expect("a reply");
        Some((reply.cookie, reply.error))
    }
}
