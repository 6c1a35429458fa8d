//! Both ends of blocking sockets, dialled or accepted, and brought to transmission; and where to listen.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::handshake::client::{Client, Step};
use common::handshake::context::ReplyStyle;
use common::handshake::server::{self, Encryption, Exports, Server};
use common::handshake::{Export, Listed};
use common::uri::{Tls, Transport, Uri};
use nbd_server::config::resolve;
use nbd_server::confine::UnixAccess;
use nbd_server::listen::Listener;
use nbd_server::transport::Socket;

/// How long a peer may take over each word of a negotiation.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP, without Nagle's delay.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

/// Listens at ADDR:PORT, or at a path, which has a slash.
pub async fn listen(address: &str) -> anyhow::Result<Listener> {
    if address.contains('/') {
        return Listener::unix(Path::new(address), UnixAccess::default());
    }
    let all = resolve(address).with_context(|| address.to_owned())?;
    let first = all.first().context("the name means no address")?;
    Listener::tcp(std::slice::from_ref(first))?.pop().context("one address is one listener")
}

/// Where clients find an export of that name.
pub fn uri(listener: &Listener, export: &str) -> io::Result<Uri> {
    Ok(Uri { export: export.to_owned(), ..listener.uri()? })
}

impl Stream {
    /// The end of a client that was accepted.
    pub fn accepted(socket: Socket) -> anyhow::Result<Stream> {
        let stream = match socket {
            Socket::Tcp(stream, _) => Stream::Tcp(stream),
            Socket::Unix(stream) => Stream::Unix(stream),
            Socket::Vsock(..) => bail!("a recorder speaks TCP and Unix sockets only"),
        };
        match &stream {
            Stream::Tcp(stream) => stream.set_nonblocking(false)?,
            Stream::Unix(stream) => stream.set_nonblocking(false)?,
        }
        Ok(stream)
    }

    /// Connects to where a URI points.
    pub fn dial(uri: &Uri) -> anyhow::Result<Stream> {
        ensure!(uri.tls == Tls::Off, "a recorder must read what passes: it speaks no TLS");
        match &uri.transport {
            Transport::Tcp { host, port } => {
                let stream = TcpStream::connect((&host[..], *port));
                let stream = stream.with_context(|| format!("cannot reach {host}, port {port}"))?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Transport::Unix { path } => {
                let stream = UnixStream::connect(path);
                Ok(Stream::Unix(stream.with_context(|| format!("cannot reach {}", path.display()))?))
            }
            Transport::Vsock { .. } => bail!("a recorder speaks TCP and Unix sockets only"),
        }
    }

    /// A second handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        })
    }

    /// Ends it, for all its handles.
    pub fn close(&self) {
        // It may have ended by itself.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        // It may have ended by itself.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(patience),
            Stream::Unix(stream) => stream.set_read_timeout(patience),
        }
    }

    /// Chooses an export, for simple replies.
    pub fn choose(&mut self, export: &str) -> anyhow::Result<Export> {
        self.set_patience(Some(PATIENCE))?;
        let mut client = Client::new(export)?;
        loop {
            let mut input = vec![0; client.need()];
            self.read_exact(&mut input).context("the server hung up, or is silent")?;
            match client.step(&input)? {
                Step::Continue { send, next } => {
                    self.write_all(&send)?;
                    client = next;
                }
                Step::Ready { send, export } => {
                    self.write_all(&send)?;
                    self.set_patience(None)?;
                    return Ok(export);
                }
                Step::StartTls { .. } | Step::Told { .. } => unreachable!("neither was asked for"),
            }
        }
    }

    /// Lets a client choose the one export there is, for simple replies; false if it does not.
    pub fn offer(&mut self, export: &Export) -> anyhow::Result<bool> {
        self.set_patience(Some(PATIENCE))?;
        let (server, greeting) = Server::new(Encryption::Unavailable);
        let mut server = server.at_most(ReplyStyle::Simple);
        self.write_all(&greeting)?;
        loop {
            let mut input = vec![0; server.need()];
            self.read_exact(&mut input)?;
            match server.step(&input, &One(export))? {
                server::Step::Continue { send, next } => {
                    self.write_all(&send)?;
                    server = next;
                }
                server::Step::Transmit { send, .. } => {
                    self.write_all(&send)?;
                    self.set_patience(None)?;
                    return Ok(true);
                }
                server::Step::Close { send } => {
                    self.write_all(&send)?;
                    return Ok(false);
                }
                server::Step::StartTls { .. } => unreachable!("it is not offered"),
            }
        }
    }
}

/// The one export that is offered, by its name and as the default.
struct One<'a>(&'a Export);

impl Exports for One<'_> {
    type Handle = ();

    fn list(&self) -> Vec<Listed> {
        vec![Listed {
            name: self.0.name.clone().unwrap_or_default(),
            description: self.0.description.clone(),
        }]
    }

    fn find(&self, name: &str) -> Option<(Export, ())> {
        let is_it = name.is_empty() || self.0.name.as_deref() == Some(name);
        is_it.then(|| (self.0.clone(), ()))
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buf),
            Stream::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(buf),
            Stream::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
