//! A page of an export's content, and what was there before the recording.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use twox_hash::XxHash3_64;

use super::{PAGE, PAGE_LEN, SECTOR, SECTOR_LEN, SECTORS};
use crate::history::{Content, Write};

/// A page's content and where each sector came from.
#[derive(Clone)]
pub struct Page {
    /// Its bytes.
    pub data: [u8; PAGE_LEN],
    /// For each sector, one more than the index of the write it is from; 0 for the base.
    pub from: [u32; SECTORS],
    /// For each sector, the hash of its content.
    pub sums: [u64; SECTORS],
}

/// What was there before the recording; zeroes where nothing is given.
#[derive(Clone, Default)]
pub struct Base(pub(super) Option<Arc<File>>);

impl Base {
    /// An image.
    pub fn open(path: &Path) -> io::Result<Base> {
        Ok(Base(Some(Arc::new(File::open(path)?))))
    }

    pub(super) fn page(&self, number: u64) -> io::Result<Arc<Page>> {
        let Some(file) = &self.0 else { return Ok(ZEROES.clone()) };
        let mut data = [0; PAGE_LEN];
        let mut filled = 0;
        // A base that is shorter than the export ends in zeroes.
        while filled < data.len() {
            match file.read_at(&mut data[filled..], number * PAGE + filled as u64)? {
                0 => break,
                len => filled += len,
            }
        }
        let mut page = Page { data, from: [0; SECTORS], sums: [0; SECTORS] };
        for sector in 0..SECTORS {
            page.sums[sector] = sum(page.sector(sector));
        }
        Ok(Arc::new(page))
    }
}

/// The hash of a sector of zeroes, and a page of them.
static ZERO_SUM: LazyLock<u64> = LazyLock::new(|| sum(&[0; SECTOR_LEN]));
static ZEROES: LazyLock<Arc<Page>> =
    LazyLock::new(|| Arc::new(Page { data: [0; PAGE_LEN], from: [0; SECTORS], sums: [*ZERO_SUM; SECTORS] }));

impl Page {
    /// The bytes of a sector.
    pub fn sector(&self, number: usize) -> &[u8] {
        &self.data[number * SECTOR_LEN..][..SECTOR_LEN]
    }
}

/// Gives sectors of a page a write's content, unless what they have is newer; returns by what the image's hash changes.
pub(super) fn overwrite(page: &mut Page, number: u64, sectors: u8, from: u32, write: &Write) -> u64 {
    let mut change = 0;
    for place in (0..SECTORS).filter(|place| sectors & 1 << place != 0) {
        if page.from[place] > from {
            continue;
        }
        let sector = number * SECTORS as u64 + place as u64;
        page.from[place] = from;
        let before = page.sums[place];
        let known = put(page, sector, write);
        let after = known.unwrap_or_else(|| sum(page.sector(place)));
        page.sums[place] = after;
        change ^= mix(sector, before) ^ mix(sector, after);
    }
    change
}

/// Puts what a write has for a sector into its page; gives the sector's new hash if the write knows it.
pub(super) fn put(page: &mut Page, sector: u64, write: &Write) -> Option<u64> {
    let start = (sector * SECTOR).max(write.offset);
    let end = ((sector + 1) * SECTOR).min(write.end());
    let at = usize::try_from(start % PAGE).expect("less than a page");
    let target = &mut page.data[at..][..usize::try_from(end - start).expect("at most a sector")];
    match &write.content {
        Content::Data(data) => {
            let skip = usize::try_from(start - write.offset).expect("data is in memory");
            target.copy_from_slice(&data[skip..][..target.len()]);
            let number = usize::try_from(sector - write.offset / SECTOR).expect("data is in memory");
            write.sums.get(number).copied().filter(|_| write.covers(sector))
        }
        Content::Zero | Content::Nothing => {
            target.fill(0);
            write.covers(sector).then_some(*ZERO_SUM)
        }
    }
}

/// The hash of a sector's content.
pub fn sum(sector: &[u8]) -> u64 {
    XxHash3_64::oneshot(sector)
}

/// The hash of a sector's content at its place.
pub(crate) fn mix(sector: u64, sum: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..].copy_from_slice(&sum.to_le_bytes());
    XxHash3_64::oneshot(&bytes)
}
