//! Drives the sans-IO handshake over a stream.

use std::io;

use common::handshake::context::Agreed;
use common::handshake::server::{Encryption, Exports, Server, Step};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::End;

/// What a negotiation led to.
pub enum Negotiated<H> {
    /// An export, and how requests to it are answered; the stream stands at the first request.
    Export(H, Agreed),
    /// The stream must be upgraded to TLS now; [`resume`] goes on.
    StartTls(Server),
}

/// Agrees with the client on an export, or on TLS first.
///
/// Reads exactly what the handshake needs: no byte of what follows is lost, and none that was sent
/// in the clear is taken for encrypted.
///
/// # Errors
/// How the connection ended instead. The caller bounds the time this may take.
pub async fn negotiate<S, E>(
    stream: &mut S,
    exports: &E,
    encryption: Encryption,
) -> Result<Negotiated<E::Handle>, End>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let (server, greeting) = Server::new(encryption);
    send(stream, &greeting).await?;
    resume(stream, exports, server).await
}

/// Goes on after the stream was upgraded.
///
/// # Errors
/// As for [`negotiate`].
pub async fn resume<S, E>(
    stream: &mut S,
    exports: &E,
    mut server: Server,
) -> Result<Negotiated<E::Handle>, End>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    loop {
        let mut input = vec![0; server.need()];
        stream.read_exact(&mut input).await.map_err(hung_up)?;
        match server.step(&input, exports)? {
            Step::Continue { send: answer, next } => {
                send(stream, &answer).await?;
                server = next;
            }
            Step::StartTls { send: answer, next } => {
                send(stream, &answer).await?;
                return Ok(Negotiated::StartTls(next));
            }
            Step::Transmit { send: answer, handle, agreed, .. } => {
                send(stream, &answer).await?;
                return Ok(Negotiated::Export(handle, agreed));
            }
            Step::Close { send: answer } => {
                // "the server SHOULD gracefully handle the client … closing the connection
                // without waiting for a reply."
                let _client_may_be_gone = send(stream, &answer).await;
                return Err(End::Aborted);
            }
        }
    }
}

/// A client that leaves while it haggles does no harm.
fn hung_up(error: io::Error) -> End {
    if error.kind() == io::ErrorKind::UnexpectedEof { End::Aborted } else { End::Broken(error) }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    stream.write_all(bytes).await?;
    // An encrypted stream holds bytes back.
    stream.flush().await
}
