//! The record in a file of its own in a state directory.
//!
//! The file has two slots of one page, written in turn and in place: what is stored needs no room that
//! could be lacking, and a crash while one slot is written leaves the other. A slot holds one line of
//! words, the last of which are its number (`slot=`) and the CRC-32C of what stands before (`crc=`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, ensure};

use super::{number, word};

/// Bytes of a slot.
const SLOT: usize = 4096;
/// Longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// The file of one record.
pub(super) struct StateFile {
    path: PathBuf,
    file: File,
    /// The number of the last record.
    last: Mutex<u64>,
}

impl StateFile {
    /// The file for what is served from `path`, made if need be, and the record that it holds.
    pub(super) fn open(dir: &Path, path: &Path) -> anyhow::Result<(StateFile, Option<String>)> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(name(path)?);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.with_context(|| format!("cannot open {}", path.display()))?;
        let opened = (|| {
            let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
            if len < 2 * SLOT {
                file.write_all_at(&vec![0; 2 * SLOT - len], len as u64)?;
                file.sync_all()?;
                File::open(dir)?.sync_all()?;
            }
            let mut slots = vec![0; 2 * SLOT];
            file.read_exact_at(&mut slots, 0)?;
            let newest = slots.chunks(SLOT).filter_map(read).max_by_key(|(number, _)| *number);
            // A file with records of which none can be read held one that is lost.
            let is_used = slots.iter().any(|byte| *byte != 0);
            Ok::<_, io::Error>(newest.or_else(|| is_used.then(|| (0, String::new()))))
        })();
        let newest = opened.with_context(|| format!("cannot use {}", path.display()))?;
        let (last, text) = newest.map_or((0, None), |(number, text)| (number, Some(text)));
        Ok((StateFile { path, file, last: Mutex::new(last) }, text))
    }

    /// Makes a record durable.
    pub(super) fn write(&self, words: &str) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = *last + 1;
        let text = format!("{words} slot={number}");
        let mut slot = format!("{text} crc={:08x}\n", crc32c::crc32c(text.as_bytes())).into_bytes();
        if slot.len() > SLOT {
            return Err(io::Error::other("the record is longer than its slot"));
        }
        slot.resize(SLOT, 0);
        self.file.write_all_at(&slot, (number % 2) * SLOT as u64)?;
        self.file.sync_data()?;
        *last = number;
        Ok(())
    }

    /// Makes sure that there is no record.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The number of a slot and its record, if it holds one.
fn read(slot: &[u8]) -> Option<(u64, String)> {
    let line = slot.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (text, crc) = line.rsplit_once(" crc=")?;
    let is_whole = u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(text.as_bytes());
    (is_whole && word(text, "epoch").is_some()).then_some(())?;
    Some((number(text, "slot")?, text.to_owned()))
}

/// The name of the file for what is served from `path`: the path as typed, with `/` and `%` encoded as in
/// a URI, so that no two paths have the same.
fn name(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?;
    let path = path.to_str().context("--state-dir needs paths that are UTF-8")?;
    let name = path.replace('%', "%25").replace('/', "%2F");
    ensure!(name.len() <= NAME_MAX, "{path} is too long a path for --state-dir");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_that_was_written_whole_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let open = || StateFile::open(dir.path(), Path::new("/dev/vg/disk")).unwrap();
        let (state_file, text) = open();
        assert_eq!(text, None);
        for number in 1..=5 {
            state_file.write(&format!("epoch={number}")).unwrap();
            assert_eq!(word(&open().1.unwrap(), "epoch"), Some(&*number.to_string()));
        }
        // A crash in the middle of the sixth.
        state_file.file.write_all_at(b"epoch=6 slot=6 crc=0", 0).unwrap();
        let (state_file, text) = open();
        assert_eq!(word(&text.unwrap(), "epoch"), Some("5"));
        state_file.write("epoch=7").unwrap();
        assert_eq!(word(&open().1.unwrap(), "epoch"), Some("7"));
        // Both damaged: there was a record, and it is lost.
        state_file.file.write_all_at(&[b'x'; 2 * SLOT], 0).unwrap();
        assert_eq!(open().1.as_deref(), Some(""));
    }

    #[test]
    fn names_differ_where_paths_do() {
        let name = |path: &str| name(Path::new(path)).unwrap();
        assert_eq!(name("/dev/vg/disk"), "%2Fdev%2Fvg%2Fdisk");
        assert_ne!(name("/a%2Fb"), name("/a/b"));
        assert_ne!(name("/dev/vg/vm.root"), name("/dev/vg/vm.swap"));
        assert!(super::name(Path::new(&format!("/{}", "x".repeat(300)))).is_err());
    }
}
