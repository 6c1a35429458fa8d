//! The content of an export at a crash: pages in memory over a base. Each sector knows the write that it has last
//! seen, and the whole knows a hash of its content that changes with it, by which equal states are found.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use crate::history::{Content, Write};

/// The unit in which writes tear, in bytes.
pub const SECTOR: u64 = 512;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The same as lengths in memory.
pub const SECTOR_LEN: usize = 512;
const PAGE_LEN: usize = 4096;
/// Sectors of a page.
pub const SECTORS: usize = PAGE_LEN / SECTOR_LEN;

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
pub struct Base(Option<Arc<File>>);

impl Base {
    /// An image.
    pub fn open(path: &Path) -> io::Result<Base> {
        Ok(Base(Some(Arc::new(File::open(path)?))))
    }

    fn page(&self, number: u64) -> io::Result<Page> {
        let mut data = [0; PAGE_LEN];
        if let Some(file) = &self.0 {
            let mut filled = 0;
            // A base that is shorter than the export ends in zeroes.
            while filled < data.len() {
                match file.read_at(&mut data[filled..], number * PAGE + filled as u64)? {
                    0 => break,
                    len => filled += len,
                }
            }
        }
        let mut page = Page { data, from: [0; SECTORS], sums: [0; SECTORS] };
        for sector in 0..SECTORS {
            page.sums[sector] = sum(page.sector(sector));
        }
        Ok(page)
    }
}

impl Page {
    /// The bytes of a sector.
    pub fn sector(&self, number: usize) -> &[u8] {
        &self.data[number * SECTOR_LEN..][..SECTOR_LEN]
    }
}

/// Pages by number.
pub type Pages = HashMap<u64, Box<Page>, BuildHasherDefault<Spread>>;

/// What is durable, or what a state makes of it.
#[derive(Clone)]
pub struct Image {
    below: Option<Arc<Image>>,
    base: Base,
    /// Pages that differ from what is below.
    pub pages: Pages,
    /// Sectors that several writes have a part in.
    mixed: HashMap<u64, Vec<u32>, BuildHasherDefault<Spread>>,
    /// Changes with the content.
    pub hash: u64,
}

impl Image {
    /// The content before the recording.
    pub fn new(base: Base) -> Image {
        Image { below: None, base, pages: Pages::default(), mixed: HashMap::default(), hash: 0 }
    }

    /// What was left of a device of `size` bytes, as what differs from what was there before.
    pub fn left(left: Base, before: &Base, size: u64) -> io::Result<Image> {
        let mut image = Image::new(left);
        for number in 0..size.div_ceil(PAGE) {
            if image.base.page(number)?.sums != before.page(number)?.sums {
                image.page_mut(number)?;
            }
        }
        Ok(image)
    }

    /// The same content, which can be changed without changing this one.
    pub fn over(self: &Arc<Image>) -> Image {
        let (pages, mixed) = (Pages::default(), HashMap::default());
        Image { below: Some(self.clone()), base: self.base.clone(), pages, mixed, hash: self.hash }
    }

    /// A page, if it differs from the base.
    pub fn page(&self, number: u64) -> Option<&Page> {
        let own = self.pages.get(&number).map(|page| &**page);
        own.or_else(|| self.below.as_ref().and_then(|below| below.page(number)))
    }

    /// The numbers of all pages that may differ from the base, some of them twice.
    pub fn every_page(&self) -> Box<dyn Iterator<Item = &u64> + '_> {
        let below = self.below.iter().flat_map(|below| below.every_page());
        Box::new(self.pages.keys().chain(below))
    }

    /// The hashes of a page's sectors.
    pub fn sums(&self, number: u64) -> io::Result<[u64; SECTORS]> {
        match self.page(number) {
            Some(page) => Ok(page.sums),
            None => Ok(self.base.page(number)?.sums),
        }
    }

    /// Fills a buffer from byte `at`.
    pub fn read(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let skip = usize::try_from(at % PAGE).expect("less than a page");
            let (head, rest) = buf.split_at_mut(buf.len().min(PAGE_LEN - skip));
            match self.page(at / PAGE) {
                Some(page) => head.copy_from_slice(&page.data[skip..][..head.len()]),
                None if self.base.0.is_none() => head.fill(0),
                None => head.copy_from_slice(&self.base.page(at / PAGE)?.data[skip..][..head.len()]),
            }
            at += head.len() as u64;
            buf = rest;
        }
        Ok(())
    }

    /// A page to change.
    pub fn page_mut(&mut self, number: u64) -> io::Result<&mut Page> {
        if !self.pages.contains_key(&number) {
            let below = self.below.as_ref().and_then(|below| below.page(number)).cloned();
            let page = below.map_or_else(|| self.base.page(number), Ok)?;
            self.pages.insert(number, Box::new(page));
        }
        Ok(self.pages.get_mut(&number).expect("it was put there"))
    }

    /// Stores bytes that belong to no recorded write; the hash no longer tells this content from others.
    pub fn write(&mut self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let skip = usize::try_from(at % PAGE).expect("less than a page");
            let (head, rest) = data.split_at(data.len().min(PAGE_LEN - skip));
            self.page_mut(at / PAGE)?.data[skip..][..head.len()].copy_from_slice(head);
            at += head.len() as u64;
            data = rest;
        }
        Ok(())
    }

    /// Applies those sectors of a write, by their place in it, that are wanted. Writes take effect in their own order,
    /// in whatever order they are applied. `index` is the write's index.
    pub fn apply(&mut self, index: usize, writes: &[Write], wanted: impl Fn(u64) -> bool) -> io::Result<()> {
        let write = &writes[index];
        let from = u32::try_from(index + 1).expect("a recording has fewer writes");
        let first = write.offset / SECTOR;
        for sector in self.sectors(write).filter(|sector| wanted(*sector - first)) {
            let mixed = self.mix(sector);
            if mixed.is_some() || !write.covers(sector) {
                self.blend(sector, from, writes, mixed.unwrap_or_default())?;
                continue;
            }
            let page = self.page_mut(sector * SECTOR / PAGE)?;
            let place = place(sector);
            if page.from[place] > from {
                continue;
            }
            page.from[place] = from;
            let before = page.sums[place];
            let known = put(page, sector, write);
            let after = known.unwrap_or_else(|| sum(page.sector(place)));
            page.sums[place] = after;
            self.hash ^= mix(sector, before) ^ mix(sector, after);
        }
        Ok(())
    }

    /// The sectors of a write that it has anything to do with. Where nothing ever was, nothing need be thrown away, and
    /// whatever was on its way may be there after all; and what is thrown away is often a whole device.
    fn sectors(&self, write: &Write) -> Box<dyn Iterator<Item = u64>> {
        let all = write.offset / SECTOR..write.offset / SECTOR + write.sectors();
        if write.content != Content::Nothing {
            return Box::new(all);
        }
        let pages = all.start * SECTOR / PAGE..=all.end.saturating_sub(1) * SECTOR / PAGE;
        let there: BTreeSet<u64> = self.every_page().copied().filter(|page| pages.contains(page)).collect();
        let sectors = there.into_iter().flat_map(|page| page * SECTORS as u64..(page + 1) * SECTORS as u64);
        Box::new(sectors.filter(move |sector| all.contains(sector)))
    }

    /// Applies a write to a sector of which it, or one before it, covers only a part: all that were applied since the
    /// last that covered the whole take effect again, in their order.
    fn blend(&mut self, sector: u64, from: u32, writes: &[Write], mut layers: Vec<u32>) -> io::Result<()> {
        let write = |layer: u32| &writes[layer as usize - 1];
        if layers.is_empty() {
            layers.extend(u32::try_from(self.from(sector)).ok().filter(|from| *from > 0));
        }
        if let Err(at) = layers.binary_search(&from) {
            layers.insert(at, from);
        }
        let lowest = layers.iter().rposition(|layer| write(*layer).covers(sector)).unwrap_or(0);
        layers.drain(..lowest);
        let before = self.base.page(sector * SECTOR / PAGE)?;
        let page = self.page_mut(sector * SECTOR / PAGE)?;
        let place = place(sector);
        let old = page.sums[place];
        page.data[place * SECTOR_LEN..][..SECTOR_LEN].copy_from_slice(before.sector(place));
        for layer in &layers {
            put(page, sector, write(*layer));
        }
        page.from[place] = layers.last().copied().unwrap_or(0);
        page.sums[place] = sum(page.sector(place));
        let new = page.sums[place];
        self.hash ^= mix(sector, old) ^ mix(sector, new);
        self.mixed.insert(sector, layers);
        Ok(())
    }

    /// One more than the indices of all writes that a sector's content is made of, if it is of several.
    fn mix(&self, sector: u64) -> Option<Vec<u32>> {
        let own = self.mixed.get(&sector).cloned();
        own.or_else(|| self.below.as_ref().and_then(|below| below.mix(sector)))
    }

    /// Whether anything of a write would still be seen if it were applied.
    pub fn shows(&self, index: usize, write: &Write) -> bool {
        let first = write.offset / SECTOR;
        (first..first + write.sectors()).any(|sector| {
            let hides = match self.mix(sector) {
                // The lowest is the last that covered all of it.
                Some(layers) => layers.first().map_or(0, |layer| u64::from(*layer)),
                None => self.from(sector),
            };
            hides <= index as u64 + 1
        })
    }

    /// One more than the index of the write a sector is from; 0 for the base.
    pub fn from(&self, sector: u64) -> u64 {
        self.page(sector * SECTOR / PAGE).map_or(0, |page| page.from[place(sector)].into())
    }
}

/// A sector's place in its page.
fn place(sector: u64) -> usize {
    usize::try_from(sector % SECTORS as u64).expect("few")
}

/// Puts what a write has for a sector into its page; gives the sector's new hash if the write knows it.
fn put(page: &mut Page, sector: u64, write: &Write) -> Option<u64> {
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
            None
        }
    }
}

/// The hash of a sector's content.
pub fn sum(sector: &[u8]) -> u64 {
    XxHash3_64::oneshot(sector)
}

/// The hash of a sector's content at its place.
fn mix(sector: u64, sum: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..].copy_from_slice(&sum.to_le_bytes());
    XxHash3_64::oneshot(&bytes)
}

/// Spreads page numbers over a table.
#[derive(Default, Clone)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_64::oneshot(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing: the table looks at the upper bits, too.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }
}
