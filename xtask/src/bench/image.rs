//! The image under measurement.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// Writes all of an image, so that nobody pays for the first touch of a block.
pub(crate) fn write_whole(path: &Path, size: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![0x5a; 1 << 20];
    while file.stream_position()? < size {
        file.write_all(&piece)?;
    }
    file.set_len(size)?;
    file.seek(SeekFrom::Start(0))?;
    file.sync_all()
}
