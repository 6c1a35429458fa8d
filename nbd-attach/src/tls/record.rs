//! Reading no further than the TLS record that is asked for.
//!
//! The kernel takes a connection over at the first byte it sees. What had been read ahead of it into a buffer of
//! ours would be missing, and every record after it could not be deciphered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Type, version and length (RFC 8446, section 5.1).
const HEADER: usize = 5;

/// A stream of which a reader gets one part of one record at a time: its header, then its contents.
#[derive(Debug)]
pub struct RecordReader<S> {
    stream: S,
    header: [u8; HEADER],
    /// Bytes of the header that were read.
    begun: usize,
    /// Bytes of the contents that are still to be read.
    left: usize,
}

impl<S> RecordReader<S> {
    /// Begins at the start of a record.
    pub fn new(stream: S) -> RecordReader<S> {
        RecordReader { stream, header: [0; HEADER], begun: 0, left: 0 }
    }

    /// The stream, if what was read of it ends where a record ends.
    pub fn into_inner(self) -> Option<S> {
        (self.begun == 0 && self.left == 0).then_some(self.stream)
    }

    fn count(&mut self, read: &[u8]) {
        if self.left > 0 {
            self.left -= read.len();
            return;
        }
        self.header[self.begun..][..read.len()].copy_from_slice(read);
        self.begun += read.len();
        if self.begun == HEADER {
            self.left = u16::from_be_bytes([self.header[3], self.header[4]]).into();
            self.begun = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RecordReader<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = if self.left > 0 { self.left } else { HEADER - self.begun };
        let mut part = vec![0; most.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        self.count(part.filled());
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RecordReader<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn it_stops_at_the_end_of_a_record() {
        let records = [22, 3, 3, 0, 3, 1, 2, 3, 23, 3, 3, 0, 1, 9, 77];
        let mut reader = RecordReader::new(&records[..]);
        let mut room = [0; 100];
        let mut read = Vec::new();
        for expected in [5, 3, 5, 1] {
            let len = reader.read(&mut room).await.unwrap();
            assert_eq!(len, expected);
            read.extend_from_slice(&room[..len]);
        }
        assert_eq!(read, records[..14]);
        assert_eq!(reader.into_inner(), Some(&[77][..]));
    }

    #[tokio::test]
    async fn in_the_midst_of_one_it_cannot_be_left() {
        for read in [1, 5, 6] {
            let mut reader = RecordReader::new(&[22, 3, 3, 0, 2, 1, 2][..]);
            reader.read_exact(&mut vec![0; read]).await.unwrap();
            assert_eq!(reader.into_inner(), None, "{read}");
        }
    }
}
