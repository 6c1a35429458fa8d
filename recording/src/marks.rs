//! How whoever drives the clients puts marks into a recording: a line over a Unix socket, answered by its sequence
//! number once it is recorded.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::{fs, thread};

use crate::{MARK_MAX, Recorder, What};

/// A socket at which marks are taken.
pub struct Marks {
    listener: UnixListener,
}

impl Marks {
    /// Listens at a path that nobody listens at.
    ///
    /// # Errors
    /// Where the path is taken or cannot be made.
    pub fn listen(path: &Path) -> io::Result<Marks> {
        vacate(path)?;
        Ok(Marks { listener: UnixListener::bind(path)? })
    }

    /// Takes marks from now on, in a thread of its own and one for each who sends them.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn take(self, recorder: Arc<Recorder>) -> io::Result<()> {
        thread::Builder::new().name("marks".to_owned()).spawn(move || {
            // Where there are no descriptors left, no more marks are taken: who sends them is told by a closed socket.
            for stream in self.listener.incoming().map_while(Result::ok) {
                let recorder = recorder.clone();
                // Who cannot be heard now sees a closed socket.
                let _ =
                    thread::Builder::new().name("mark".to_owned()).spawn(move || hear(&stream, &recorder));
            }
        })?;
        Ok(())
    }
}

/// Makes way for a socket at a path: removes one that a process which was killed has left behind, and nothing else.
///
/// # Errors
/// Where somebody listens there, or there is something that is no socket.
pub fn vacate(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    // Not by connecting to it: what is no socket refuses a connection, too.
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "it exists and is not a socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another server is listening there")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Records every line of one who sends marks.
fn hear(stream: &UnixStream, recorder: &Recorder) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let len = (&mut lines).take(MARK_MAX as u64 + 1).read_line(&mut line)?;
        let answer = match line.strip_suffix('\n') {
            _ if len == 0 => return Ok(()),
            Some(text) => recorder.record(0, &What::Mark(text.to_owned()))?,
            None => return Err(ErrorKind::InvalidData.into()),
        };
        let mut writer = stream;
        writer.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// Sends a mark over a connected socket and waits until it is recorded; gives its sequence number.
///
/// # Errors
/// Where the text is longer than [`MARK_MAX`] or has a line end, or the recorder is gone.
pub fn send_mark(stream: &mut BufReader<UnixStream>, text: &str) -> io::Result<u64> {
    if text.len() > MARK_MAX || text.contains('\n') {
        return Err(io::Error::new(ErrorKind::InvalidInput, "a mark is one line of at most 4096 bytes"));
    }
    stream.get_mut().write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_line(&mut answer)?;
    answer.trim_end().parse().map_err(|_| io::Error::new(ErrorKind::UnexpectedEof, "the recorder is gone"))
}
