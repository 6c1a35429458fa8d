//! A raw NBD client on blocking sockets.
//!
//! [`Socket`] carries any bytes at all; [`Client`] has shaken hands and sends requests without
//! waiting for replies, so that a test decides what is in flight. Every wait ends at
//! [`PATIENCE`], so that a silent server fails a test instead of hanging it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::handshake::Export;
use common::handshake::client::{self as role, Step};
use common::proto::{CommandFlags, CommandType, SIMPLE_REPLY_HEADER_LEN, WireError};
use common::reply::SimpleReply;

use common::command::RequestHeader;
use rustls::{ClientConnection, StreamOwned};

use crate::PATIENCE;
use crate::server::{Endpoint, Trust};
use vm_tests::patience::longest;

/// A connected socket that has said nothing yet.
pub enum Socket {
    /// Unix.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
    /// One of them, encrypted.
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Socket {
    /// Connects.
    pub fn connect(to: &Endpoint) -> io::Result<Socket> {
        let socket = match to {
            Endpoint::Unix(path) => Socket::Unix(UnixStream::connect(path)?),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            // Encryption is agreed on first, in the clear.
            Endpoint::Tls(inner, _) => Socket::connect(inner)?,
        };
        socket.patience(longest(PATIENCE))?;
        Ok(socket)
    }

    /// How long a read or a write may wait.
    pub fn patience(&self, patience: Duration) -> io::Result<()> {
        match self {
            Socket::Unix(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
            Socket::Tcp(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
            Socket::Tls(stream) => stream.get_ref().patience(patience),
        }
    }

    /// Encrypts what follows. The server has agreed.
    ///
    /// # Panics
    /// When there is no session for such a server.
    #[must_use]
    pub fn encrypted(self, trust: &Trust) -> Socket {
        let session = ClientConnection::new(trust.config.clone(), trust.name.clone());
        Socket::Tls(Box::new(StreamOwned::new(session.expect("a session"), self)))
    }

    /// Says that nothing more will be sent; replies can still be read.
    pub fn close_sending(&mut self) -> io::Result<()> {
        match self {
            Socket::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
                stream.get_mut().close_sending()
            }
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// The next `len` bytes.
    pub fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything until the server closes. A reset counts as a close.
    ///
    /// # Panics
    /// When it does not close.
    pub fn until_closed(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.read_to_end(&mut all) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                panic!("the server does not close: {error}")
            }
            _ => all,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.read(buf),
            Socket::Tcp(stream) => stream.read(buf),
            Socket::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.write(buf),
            Socket::Tcp(stream) => stream.write(buf),
            // A test's bytes go at once.
            Socket::Tls(stream) => stream.write(buf).and_then(|len| stream.flush().map(|()| len)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reply, with the data of a READ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Which request it answers.
    pub cookie: u64,
    /// [`WireError::OK`] or what went wrong.
    pub error: WireError,
    /// What a READ read.
    pub data: Vec<u8>,
}

/// A client in transmission.
pub struct Client {
    /// For bytes that no decent client sends.
    pub socket: Socket,
    /// What the server told.
    pub export: Export,
    next_cookie: u64,
    /// Bytes of data that a success brings, by cookie.
    due: HashMap<u64, u32>,
}

/// No modifier.
pub const PLAIN: CommandFlags = CommandFlags::NONE;
/// Force unit access.
pub const FUA: CommandFlags = CommandFlags::FUA;

impl Client {
    /// Connects to an export; the default one has an empty name.
    ///
    /// # Errors
    /// Of the socket; also when the server closes instead.
    ///
    /// # Panics
    /// When the server refuses in words.
    pub fn try_connect(to: &Endpoint, export: &str) -> io::Result<Client> {
        Client::over(Socket::connect(to)?, to, export)
    }

    /// Shakes hands on a socket that is connected to this place.
    ///
    /// # Errors
    /// Of the socket; also when the server closes instead.
    ///
    /// # Panics
    /// When the server refuses in words.
    pub fn over(mut socket: Socket, to: &Endpoint, export: &str) -> io::Result<Client> {
        let mut negotiation = role::Client::new(export).expect("names in tests are valid");
        if let Endpoint::Tls(..) = to {
            negotiation = negotiation.over_tls();
        }
        loop {
            let input = socket.receive(negotiation.need())?;
            let step = negotiation.step(&input).unwrap_or_else(|error| panic!("{error}"));
            match step {
                Step::Continue { send, next } => {
                    socket.write_all(&send)?;
                    negotiation = next;
                }
                Step::Ready { send, export } => {
                    socket.write_all(&send)?;
                    return Ok(Client { socket, export, next_cookie: 1, due: HashMap::new() });
                }
                Step::StartTls { send, next } => {
                    let Endpoint::Tls(_, trust) = to else { unreachable!("only then it asks for TLS") };
                    socket = socket.encrypted(trust);
                    socket.write_all(&send)?;
                    negotiation = next;
                }
                Step::Told { .. } => unreachable!("transmission was asked for"),
            }
        }
    }

    /// Connects to the default export.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn connect(to: &Endpoint) -> Client {
        Client::try_connect(to, "").expect("the server takes a connection")
    }

    /// Counts cookies from here, so that requests of several clients can be told apart.
    pub fn cookies_from(&mut self, first: u64) {
        self.next_cookie = first;
    }

    /// Appends a request to `out`, to be sent by the caller; returns its cookie.
    pub fn encode(
        &mut self,
        out: &mut Vec<u8>,
        command: CommandType,
        flags: CommandFlags,
        offset: u64,
        length: u32,
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        RequestHeader { flags, command, cookie, offset, length: length.into() }.encode(out);
        self.due.insert(cookie, if command == CommandType::READ { length } else { 0 });
        cookie
    }

    /// Sends a request without a payload; returns its cookie.
    pub fn send(&mut self, command: CommandType, flags: CommandFlags, offset: u64, length: u32) -> u64 {
        let mut out = Vec::new();
        let cookie = self.encode(&mut out, command, flags, offset, length);
        self.socket.write_all(&out).expect("the server takes requests");
        cookie
    }

    /// Sends a WRITE; returns its cookie.
    pub fn send_write(&mut self, flags: CommandFlags, offset: u64, data: &[u8]) -> u64 {
        let mut out = Vec::new();
        let length = u32::try_from(data.len()).expect("payloads in tests are short");
        let cookie = self.encode(&mut out, CommandType::WRITE, flags, offset, length);
        out.extend_from_slice(data);
        self.socket.write_all(&out).expect("the server takes requests");
        cookie
    }

    /// The next reply, whichever request it answers.
    ///
    /// # Errors
    /// Of the socket; also when the server closes instead.
    ///
    /// # Panics
    /// When it answers something that was not asked, or twice.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut header = [0; SIMPLE_REPLY_HEADER_LEN];
        self.socket.read_exact(&mut header)?;
        let SimpleReply { error, cookie } = SimpleReply::decode(&header).expect("a simple reply");
        let due = self.due.remove(&cookie).unwrap_or_else(|| panic!("a reply to {cookie}, which is not due"));
        let len = if error == WireError::OK { due as usize } else { 0 };
        Ok(Reply { cookie, error, data: self.socket.receive(len)? })
    }

    /// The next reply, whichever request it answers.
    ///
    /// # Panics
    /// When there is none.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("the server replies")
    }

    /// Requests sent and not answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.due.len()
    }

    /// Reads and waits.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, WireError> {
        self.send(CommandType::READ, PLAIN, offset, length);
        let reply = self.reply();
        if reply.error == WireError::OK { Ok(reply.data) } else { Err(reply.error) }
    }

    /// Writes and waits.
    pub fn write(&mut self, flags: CommandFlags, offset: u64, data: &[u8]) -> WireError {
        self.send_write(flags, offset, data);
        self.reply().error
    }

    /// Sends a request without a payload and waits for its answer.
    pub fn ask(&mut self, command: CommandType, flags: CommandFlags, offset: u64, length: u32) -> WireError {
        self.send(command, flags, offset, length);
        self.reply().error
    }

    /// Flushes and waits.
    pub fn flush(&mut self) -> WireError {
        self.ask(CommandType::FLUSH, PLAIN, 0, 0)
    }

    /// Says goodbye and waits until the server has closed; nothing but that may come.
    ///
    /// # Panics
    /// When something else comes.
    pub fn disconnect(mut self) {
        self.send(CommandType::DISC, PLAIN, 0, 0);
        assert_eq!(self.socket.until_closed(), b"", "DISC is never answered");
    }
}
