//! Drives the protocol's client role over a socket until transmission begins.
//!
//! Exactly the bytes the handshake asks for are read, none more: what follows on the socket
//! belongs to the kernel. A peer that stays silent or dribbles is cut off by one deadline.

use common::handshake::Export;
use common::handshake::client::{Answer, Client, ClientError, Step};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why the handshake did not end well.
#[derive(Debug, thiserror::Error)]
pub enum NegotiateError {
    /// The peer broke the rules or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It hung up.
    #[error(
        "the server closed the connection during the handshake (old servers do so when the export does not exist)"
    )]
    Closed,
    /// The connection failed.
    #[error("the connection failed during the handshake: {0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("the server did not finish the handshake within {} s (is it an NBD server?)", .0.as_secs())]
    Deadline(Duration),
    /// It claims to be done with an answer that is none.
    #[error("the server answered a question that was not asked")]
    Unasked,
}

/// Negotiates the export within `patience`.
pub async fn negotiate<S>(stream: &mut S, export: &str, patience: Duration) -> Result<Export, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    start(stream, Client::new(export)?, patience).await
}

async fn start<S>(stream: &mut S, client: Client, patience: Duration) -> Result<Export, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    match converse(stream, client, patience).await? {
        Outcome::Ready(export) => Ok(export),
        Outcome::Told(_) | Outcome::StartTls(_) => Err(NegotiateError::Unasked),
    }
}

/// Puts the client's question and gives its answer within `patience`.
pub async fn ask<S>(stream: &mut S, client: Client, patience: Duration) -> Result<Answer, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    match converse(stream, client, patience).await? {
        Outcome::Told(answer) => Ok(answer),
        Outcome::Ready(_) | Outcome::StartTls(_) => Err(NegotiateError::Unasked),
    }
}

/// Agrees on TLS within `patience`; what is left to say is to be encrypted.
pub async fn start_tls<S>(stream: &mut S, client: Client, patience: Duration) -> Result<Rest, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    match converse(stream, client.over_tls(), patience).await? {
        Outcome::StartTls(rest) => Ok(rest),
        Outcome::Ready(_) | Outcome::Told(_) => Err(NegotiateError::Unasked),
    }
}

/// The rest of a handshake that goes on over TLS.
pub struct Rest {
    send: Vec<u8>,
    client: Client,
}

impl Rest {
    /// Puts the client's question over the encrypted stream and gives its answer within `patience`.
    pub async fn ask<S>(self, stream: &mut S, patience: Duration) -> Result<Answer, NegotiateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        begin(stream, &self.send, patience).await?;
        ask(stream, self.client, patience).await
    }

    /// Begins transmission over the encrypted stream within `patience`.
    pub async fn negotiate<S>(self, stream: &mut S, patience: Duration) -> Result<Export, NegotiateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        begin(stream, &self.send, patience).await?;
        start(stream, self.client, patience).await
    }
}

/// Says the first thing over an encrypted stream. A server that does not like our certificate has hung up by then,
/// but not without saying why.
async fn begin<S>(stream: &mut S, bytes: &[u8], patience: Duration) -> Result<(), NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Err(error) = send(stream, bytes).await else { return Ok(()) };
    let reason = tokio::time::timeout(patience, stream.read(&mut [0])).await;
    match reason {
        Ok(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => Err(NegotiateError::Io(reason)),
        _ => Err(error),
    }
}

/// What a handshake led to.
enum Outcome {
    Ready(Export),
    Told(Answer),
    StartTls(Rest),
}

async fn converse<S>(stream: &mut S, client: Client, patience: Duration) -> Result<Outcome, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let handshake = tokio::time::timeout(patience, drive(stream, client));
    handshake.await.unwrap_or(Err(NegotiateError::Deadline(patience)))
}

async fn drive<S>(stream: &mut S, mut client: Client) -> Result<Outcome, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    loop {
        let mut input = vec![0; client.need()];
        stream.read_exact(&mut input).await.map_err(closed)?;
        match client.step(&input)? {
            Step::Continue { send: bytes, next } => {
                send(stream, &bytes).await?;
                client = next;
            }
            Step::StartTls { send, next } => return Ok(Outcome::StartTls(Rest { send, client: next })),
            Step::Ready { send: bytes, export } => {
                send(stream, &bytes).await?;
                return Ok(Outcome::Ready(export));
            }
            Step::Told { send: bytes, answer } => {
                // The server need not wait for the goodbye.
                let _may_be_gone = send(stream, &bytes).await;
                return Ok(Outcome::Told(answer));
            }
        }
    }
}

async fn send<S: AsyncWrite + Unpin + ?Sized>(stream: &mut S, bytes: &[u8]) -> Result<(), NegotiateError> {
    stream.write_all(bytes).await.map_err(closed)?;
    // An encrypted stream holds bytes back.
    stream.flush().await.map_err(closed)
}

fn closed(error: io::Error) -> NegotiateError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            NegotiateError::Closed
        }
        _ => NegotiateError::Io(error),
    }
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
