//! Stands between clients and a server and records what passes. Requests and replies go on as they are, byte by byte;
//! only the negotiation is held twice, because replies must be simple to be told apart.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, bail, ensure};
use common::command::RequestHeader;
use common::handshake::Export;
use common::proto::{CommandType, REQUEST_HEADER_LEN, SIMPLE_REPLY_HEADER_LEN, TransmissionFlags, WireError};
use common::reply::SimpleReply;
use common::uri::Uri;
use nbd_server::listen::Listener;
use recording::{Header, Marks, PAYLOAD_MAX, Recorder, Request, Tap, What};

use tokio::sync::Semaphore;

use crate::cli::Record;
use crate::endpoint::Stream;

/// Bytes of a reply that are passed on at a time.
const PIECE: usize = 256 << 10;
/// Clients at a time: each takes two threads and six descriptors.
const CLIENTS_MAX: usize = 128;
/// Requests of one connection that may be open.
const OPEN_MAX: usize = 16_384;

/// A recorder that is between clients and a server.
pub struct Proxy {
    uri: Uri,
    export: Export,
    recorder: Arc<Recorder>,
}

/// A request that awaits its reply.
struct Open {
    /// Its number in the recording, if it is there.
    seq: Option<u64>,
    /// Bytes that follow a reply of success.
    data: u64,
}

type Pending = Mutex<HashMap<u64, Open>>;

impl Proxy {
    /// Asks the server about its export and begins the recording.
    pub fn new(record: &Record) -> anyhow::Result<Proxy> {
        let uri: Uri = record.to.parse().with_context(|| record.to.clone())?;
        let mut export = Stream::dial(&uri)?.choose(&uri.export).with_context(|| record.to.clone())?;
        export.flags = export.flags.without(TransmissionFlags::SEND_DF);
        export.name.get_or_insert_with(|| uri.export.clone());
        let file = File::create_new(&record.log)
            .with_context(|| format!("cannot record to {}", record.log.display()))?;
        let header =
            Header { size: export.size, flags: export.flags.0, began_ns: 0, name: uri.export.clone() };
        let recorder = Arc::new(Recorder::begin(file, header)?);
        if let Some(path) = &record.marks {
            let marks =
                Marks::listen(path).with_context(|| format!("cannot take marks at {}", path.display()))?;
            marks.take(recorder.clone())?;
        }
        Ok(Proxy { uri, export, recorder })
    }

    /// The name of the export.
    pub fn name(&self) -> &str {
        self.export.name.as_deref().unwrap_or_default()
    }

    /// Serves clients, each in threads of its own; those beyond what there is room for wait.
    pub async fn serve(self: &Arc<Self>, listener: &Listener) -> Infallible {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("it is never closed");
            let (proxy, client) = (self.clone(), listener.accept().await);
            let begun = thread::Builder::new().spawn(move || {
                let peer = client.to_string();
                if let Err(error) = Stream::accepted(client).and_then(|client| proxy.converse(client)) {
                    tracing::warn!(peer, "{error:#}");
                }
                drop(place);
            });
            if let Err(error) = begun {
                tracing::error!(%error, "a client is turned away");
            }
        }
    }

    /// Writes the recording's end.
    pub fn end(&self) -> anyhow::Result<()> {
        self.recorder.record(0, &What::End).map(drop).context("the recording has no end")
    }

    fn converse(&self, mut client: Stream) -> anyhow::Result<()> {
        let mut server = Stream::dial(&self.uri)?;
        let now = server.choose(&self.uri.export)?;
        ensure!(now.size == self.export.size, "the export has another size than when the recording began");
        if !client.offer(&self.export)? {
            return Ok(());
        }
        let tap = self.recorder.connect().context("the recording ends here")?;
        let pending = Pending::default();
        let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
        thread::scope(|scope| {
            let replies = scope.spawn(|| {
                let done = replies(from_server, to_client, &tap, &pending);
                client.close_both(&server);
                done
            });
            let requests = self.requests(client.try_clone()?, server.try_clone()?, &tap, &pending);
            match requests {
                // The server answers what it has received, and closes.
                Ok(()) => server.finish(),
                Err(_) => client.close_both(&server),
            }
            let replies = replies.join().unwrap_or_else(|_| bail!("passing replies on panicked"));
            requests.and(replies)
        })
    }

    /// Passes requests on until the client says goodbye or hangs up.
    fn requests(&self, mut from: Stream, mut to: Stream, tap: &Tap, pending: &Pending) -> anyhow::Result<()> {
        let mut head = [0; REQUEST_HEADER_LEN];
        let mut bytes = Vec::new();
        loop {
            if !read_or_end(&mut from, &mut head)? {
                return Ok(());
            }
            let header = RequestHeader::decode(&head)?;
            bytes.clear();
            bytes.extend_from_slice(&head);
            if header.command == CommandType::WRITE {
                ensure!(
                    header.length <= PAYLOAD_MAX as u64,
                    "a WRITE of {} bytes is too long",
                    header.length
                );
                bytes.resize(REQUEST_HEADER_LEN + usize::try_from(header.length)?, 0);
                from.read_exact(&mut bytes[REQUEST_HEADER_LEN..])?;
            }
            if header.command != CommandType::DISC {
                let seq = self.record(&header, &bytes[REQUEST_HEADER_LEN..], tap)?;
                let data = if header.command == CommandType::READ { header.length } else { 0 };
                let mut open = pending.lock().unwrap_or_else(PoisonError::into_inner);
                ensure!(open.len() < OPEN_MAX, "more than {OPEN_MAX} requests are open");
                let before = open.insert(header.cookie, Open { seq, data });
                ensure!(before.is_none(), "two requests with the cookie {:#x} are open", header.cookie);
            }
            to.write_all(&bytes)?;
        }
    }

    /// Records what changes something; a range outside the export changes nothing.
    fn record(&self, header: &RequestHeader, data: &[u8], tap: &Tap) -> anyhow::Result<Option<u64>> {
        let matters = matches!(
            header.command,
            CommandType::WRITE | CommandType::WRITE_ZEROES | CommandType::TRIM | CommandType::FLUSH
        );
        let matters = matters && (header.length > 0 || header.command == CommandType::FLUSH);
        let inside = header.offset.checked_add(header.length).is_some_and(|end| end <= self.export.size);
        if !matters || !inside {
            return Ok(None);
        }
        let request = Request {
            cookie: header.cookie,
            offset: header.offset,
            length: header.length,
            command: header.command.0,
            flags: header.flags.0,
            data: Vec::new(),
        };
        Ok(Some(tap.received(&request, data).context("the recording ends here")?))
    }
}

/// Passes replies on until the server hangs up.
fn replies(mut from: Stream, mut to: Stream, tap: &Tap, pending: &Pending) -> anyhow::Result<()> {
    let mut head = [0; SIMPLE_REPLY_HEADER_LEN];
    let mut piece = vec![0; PIECE];
    loop {
        if !read_or_end(&mut from, &mut head)? {
            return Ok(());
        }
        let reply = SimpleReply::decode(&head)?;
        let open = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.cookie);
        let Open { seq, data } =
            open.with_context(|| format!("the server answers {:#x}, which nobody asked", reply.cookie))?;
        if let Some(seq) = seq {
            tap.answers(seq, reply.error.0).context("the recording ends here")?;
        }
        to.write_all(&head)?;
        let mut left = if reply.error == WireError::OK { data } else { 0 };
        while left > 0 {
            let len = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
            from.read_exact(&mut piece[..len])?;
            to.write_all(&piece[..len])?;
            left -= len as u64;
        }
    }
}

/// Fills a buffer; false if the stream ended before it.
fn read_or_end(from: &mut Stream, buf: &mut [u8]) -> anyhow::Result<bool> {
    let first = loop {
        match from.read(buf) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first > 0 {
        from.read_exact(&mut buf[first..])?;
    }
    Ok(first > 0)
}

impl Stream {
    /// Ends a conversation from either side.
    fn close_both(&self, other: &Stream) {
        self.close();
        other.close();
    }
}
