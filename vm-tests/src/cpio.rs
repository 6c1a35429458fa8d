//! Writes the archive format the kernel unpacks as its first root: cpio, "newc" variant. Only what an initramfs
//! needs: directories, files and symbolic links, all owned by root.

use std::io::{self, Write};

/// What an archive member is.
pub(crate) enum Member<'a> {
    Directory,
    File { contents: &'a [u8], executable: bool },
    Link { target: &'a str },
}

/// An archive being written.
pub(crate) struct Archive<W> {
    out: W,
    members: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const TRAILER: &str = "TRAILER!!!";

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Archive { out, members: 0 }
    }

    /// Adds one member; `path` has no leading slash, and its directory must have been added before.
    pub(crate) fn add(&mut self, path: &str, member: &Member<'_>) -> io::Result<()> {
        let (mode, contents) = match member {
            Member::Directory => (DIRECTORY, &[][..]),
            Member::File { contents, executable: true } => (PROGRAM, *contents),
            Member::File { contents, executable: false } => (FILE, *contents),
            Member::Link { target } => (LINK, target.as_bytes()),
        };
        self.raw(path, mode, contents)
    }

    /// Ends the archive and gives back what it was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.raw(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn raw(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.members += 1;
        let length = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let name_length = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        // inode, mode, uid, gid, links, mtime, size, device ×4, name length, checksum (unused)
        let fields = [self.members, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(path);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(contents)
    }

    /// Headers and contents each start at a multiple of four.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_the_trailer_ends_them() {
        let mut archive = Archive::new(Vec::new());
        archive.add("d", &Member::Directory).unwrap();
        archive.add("d/abc", &Member::File { contents: b"12345", executable: true }).unwrap();
        let bytes = archive.finish().unwrap();
        // 110 bytes of header, the name with its zero, padding to four; then contents, padded.
        let file = 112;
        assert_eq!(&bytes[file..file + 6], b"070701");
        assert_eq!(&bytes[file + 14..file + 22], b"000081ed");
        assert_eq!(&bytes[file + 110..file + 116], b"d/abc\0");
        assert_eq!(&bytes[file + 116..file + 124], b"12345\0\0\0");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0") && bytes.len() % 4 == 0);
    }
}
