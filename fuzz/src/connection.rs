//! A client's bytes against a whole connection, from the greeting on.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use common::handshake::server::Encryption;
use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::pending;
use nbd_server::export::{Origin, Peer, Secrecy, Visible};
use nbd_server::session::{self, End, Negotiated};

use crate::stage::Stage;

/// Bytes the server may say for one byte of the client: a short request may ask for all of the export.
const ECHO_MAX: usize = 4096;

/// The first byte chooses the durability mode; the rest is what the client sends before it closes.
pub fn run(data: &[u8]) {
    let Some((&mode, sent)) = data.split_first() else { return };
    let mut stage = Stage::new(mode);
    let said = {
        let (registry, memory) = (std::mem::take(&mut stage.registry), stage.memory.clone());
        let sent = sent.to_vec();
        stage.play(async move {
            let peer = Peer { origin: Origin::Host, names: Vec::new(), secrecy: Secrecy::Clear };
            let exports = Visible { registry: &registry, peer: &peer };
            let mut stream = Stream { sent: sent.into(), said: Vec::new() };
            match session::negotiate(&mut stream, &exports, Encryption::Unavailable).await {
                Ok(Negotiated::Export(export, agreed)) => {
                    let progress = Rc::default();
                    let end =
                        session::transmit(&mut stream, export, agreed, memory, pending(), progress).await;
                    assert!(!matches!(end, End::Aborted | End::Stopped), "{end}");
                }
                Ok(Negotiated::StartTls(_)) => unreachable!("there is no TLS"),
                Err(end) => assert!(matches!(end, End::Aborted | End::Violation(_)), "{end}"),
            }
            stream.said
        })
    };
    assert!(said.len() <= (sent.len() + 1) * ECHO_MAX, "{} bytes for {}", said.len(), sent.len());
}

/// What the client has sent, and what it has heard.
struct Stream {
    sent: VecDeque<u8>,
    said: Vec<u8>,
}

impl session::Stream for Stream {}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.sent.read(buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.said.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
