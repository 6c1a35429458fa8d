//! The content of an export at a crash: pages in memory over a base. Each sector knows the write that it has last
//! seen, and the whole knows a hash of its content that changes with it, by which equal states are found.
//!
//! States of one time differ in few pages. Images share the pages that they have in common, and what a write makes of a
//! page is worked out once: see [`Rewrites`].

mod page;
mod rewrites;

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::Arc;

use crate::history::{Content, Write};
pub(crate) use page::mix;
use page::put;
pub use page::{Base, Page, sum};
pub use rewrites::{Rewrites, Spread};

/// The unit in which writes tear, in bytes.
pub const SECTOR: u64 = 512;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The same as lengths in memory.
pub const SECTOR_LEN: usize = 512;
const PAGE_LEN: usize = 4096;
/// Sectors of a page.
pub const SECTORS: usize = PAGE_LEN / SECTOR_LEN;

/// Pages by number.
pub type Pages = HashMap<u64, Arc<Page>, BuildHasherDefault<Spread>>;

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

    /// What this was made over.
    pub fn below(&self) -> Option<&Arc<Image>> {
        self.below.as_ref()
    }

    /// A page, if it differs from the base.
    pub fn page(&self, number: u64) -> Option<&Arc<Page>> {
        self.pages.get(&number).or_else(|| self.below.as_ref().and_then(|below| below.page(number)))
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
            self.pages.insert(number, self.shared(number)?);
        }
        Ok(Arc::make_mut(self.pages.get_mut(&number).expect("it was put there")))
    }

    /// A page as it is, whosever it is.
    fn shared(&self, number: u64) -> io::Result<Arc<Page>> {
        self.page(number).map_or_else(|| self.base.page(number), |page| Ok(page.clone()))
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
    pub fn apply(
        &mut self,
        index: usize,
        writes: &[Write],
        wanted: impl Fn(u64) -> bool,
        rewrites: &mut Rewrites,
    ) -> io::Result<()> {
        let write = &writes[index];
        let from = u32::try_from(index + 1).expect("a recording has fewer writes");
        let first = write.offset / SECTOR;
        let all = first..first + write.sectors();
        let is_whole = write.offset.is_multiple_of(SECTOR) && write.length.is_multiple_of(SECTOR);
        let touched = self.touched(write);
        self.pages.reserve(touched.len());
        for page in touched {
            let start = page * SECTORS as u64;
            let meets = places(|place| all.contains(&(start + place)) && wanted(start + place - first));
            let in_parts = if is_whole && !self.has_mixed() {
                0
            } else {
                places(|place| {
                    let sector = start + place;
                    meets & 1 << place != 0 && (!write.covers(sector) || self.is_mixed(sector))
                })
            };
            self.rewrite(page, meets & !in_parts, from, write, rewrites)?;
            for place in (0..SECTORS as u64).filter(|place| in_parts & 1 << place != 0) {
                self.blend(start + place, from, writes)?;
            }
        }
        Ok(())
    }

    /// Gives sectors of a page, all of which a write covers, its content, but for those that have newer content.
    fn rewrite(
        &mut self,
        page: u64,
        sectors: u8,
        from: u32,
        write: &Write,
        rewrites: &mut Rewrites,
    ) -> io::Result<()> {
        if sectors == 0 {
            return Ok(());
        }
        let (after, change) = rewrites.after(self.shared(page)?, page, sectors, from, write);
        self.hash ^= change;
        self.pages.insert(page, after);
        Ok(())
    }

    /// The pages that a write has anything to do with. Where nothing ever was, nothing need be thrown away, and whatever
    /// was on its way may be there after all; and what is thrown away is often a whole device.
    fn touched(&self, write: &Write) -> Vec<u64> {
        let pages = write.offset / PAGE..(write.offset / SECTOR + write.sectors()).div_ceil(SECTORS as u64);
        if write.content != Content::Nothing {
            return pages.collect();
        }
        let held = self.pages.len() as u64 + self.below.as_ref().map_or(0, |below| below.pages.len() as u64);
        if pages.end - pages.start <= held {
            return pages.filter(|page| self.page(*page).is_some()).collect();
        }
        let there: BTreeSet<u64> = self.every_page().copied().filter(|page| pages.contains(page)).collect();
        there.into_iter().collect()
    }

    /// Applies a write to a sector of which it, or one before it, covers only a part: all that were applied since the
    /// last that covered the whole take effect again, in their order.
    fn blend(&mut self, sector: u64, from: u32, writes: &[Write]) -> io::Result<()> {
        let write = |layer: u32| &writes[layer as usize - 1];
        let mut layers = self.mix(sector).unwrap_or_default();
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

    fn has_mixed(&self) -> bool {
        !self.mixed.is_empty() || self.below.as_ref().is_some_and(|below| below.has_mixed())
    }

    fn is_mixed(&self, sector: u64) -> bool {
        self.mixed.contains_key(&sector) || self.below.as_ref().is_some_and(|below| below.is_mixed(sector))
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

/// A bit for each sector of a page for which something holds.
fn places(holds: impl Fn(u64) -> bool) -> u8 {
    (0..SECTORS as u64).fold(0, |bits, place| bits | u8::from(holds(place)) << place)
}
