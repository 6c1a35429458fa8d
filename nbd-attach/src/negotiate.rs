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
    match converse(stream, Client::new(export)?, patience).await? {
        Outcome::Ready(export) => Ok(export),
        Outcome::Told(_) => Err(NegotiateError::Unasked),
    }
}

/// Puts the client's question and gives its answer within `patience`.
pub async fn ask<S>(stream: &mut S, client: Client, patience: Duration) -> Result<Answer, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    match converse(stream, client, patience).await? {
        Outcome::Told(answer) => Ok(answer),
        Outcome::Ready(_) => Err(NegotiateError::Unasked),
    }
}

/// What a handshake led to.
enum Outcome {
    Ready(Export),
    Told(Answer),
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
            Step::Continue { send, next } => {
                stream.write_all(&send).await.map_err(closed)?;
                client = next;
            }
            Step::Ready { send, export } => {
                stream.write_all(&send).await.map_err(closed)?;
                return Ok(Outcome::Ready(export));
            }
            Step::Told { send, answer } => {
                // The server need not wait for the goodbye.
                let _may_be_gone = stream.write_all(&send).await;
                return Ok(Outcome::Told(answer));
            }
        }
    }
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
