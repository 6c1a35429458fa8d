//! Drives the sans-IO handshake over a stream.

use common::handshake::context::Agreed;
use common::handshake::server::{Exports, Server, Step};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::End;

/// Agrees with the client on an export, and on how requests to it are answered.
///
/// Reads exactly what the handshake needs, so the stream then stands at the first request.
///
/// # Errors
/// How the connection ended instead. The caller bounds the time this may take.
pub async fn negotiate<S, E>(stream: &mut S, exports: &E) -> Result<(E::Handle, Agreed), End>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let (mut server, greeting) = Server::new();
    stream.write_all(&greeting).await?;
    loop {
        let mut input = vec![0; server.need()];
        stream.read_exact(&mut input).await?;
        match server.step(&input, exports)? {
            Step::Continue { send, next } => {
                stream.write_all(&send).await?;
                server = next;
            }
            Step::Transmit { send, handle, agreed, .. } => {
                stream.write_all(&send).await?;
                return Ok((handle, agreed));
            }
            Step::Close { send } => {
                // "the server SHOULD gracefully handle the client … closing the connection
                // without waiting for a reply."
                let _client_may_be_gone = stream.write_all(&send).await;
                return Err(End::Aborted);
            }
        }
    }
}
