//! The content of an export at a crash: pages in memory over a base. Each sector knows the write that it has last
//! seen, and the whole knows a hash of its content that changes with it, by which equal states are found.
//!
//! States of one time differ in few pages. Images share the pages that they have in common, and what a write makes of a
//! page is worked out once: see [`Rewrites`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

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

    fn page(&self, number: u64) -> io::Result<Arc<Page>> {
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

/// Pages by number.
pub type Pages = HashMap<u64, Arc<Page>, BuildHasherDefault<Spread>>;

/// What writes have made of pages, so that the states of one time, which keep the same writes in many combinations,
/// need not copy and hash the same bytes again and again. With it a state costs a reference per page that it changes.
#[derive(Default)]
pub struct Rewrites {
    known: HashMap<Rewrite, Rewritten, BuildHasherDefault<Spread>>,
    /// How many pages were made anew rather than found here.
    pub made: u64,
}

/// Sectors of a write that meet a page, which is known by its address: whoever knows a rewrite holds its page.
#[derive(PartialEq, Eq)]
struct Rewrite {
    page: u64,
    before: usize,
    from: u32,
    sectors: u8,
}

struct Rewritten {
    after: Arc<Page>,
    /// By what the image's hash changes.
    change: u64,
    _before: Arc<Page>,
}

/// Rewrites that are kept: some 64 MiB for a thread.
const REWRITES_MAX: usize = 1 << 13;

impl Hash for Rewrite {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let write = u64::from(self.from) << 8 | u64::from(self.sectors);
        hasher.write_u64(self.page.rotate_left(40) ^ (self.before as u64).rotate_left(17) ^ write);
    }
}

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
        let before = self.shared(page)?;
        let key = Rewrite { page, before: Arc::as_ptr(&before).addr(), from, sectors };
        if let Some(known) = rewrites.known.get(&key) {
            self.hash ^= known.change;
            self.pages.insert(page, known.after.clone());
            return Ok(());
        }
        rewrites.made += 1;
        let mut after = before.clone();
        let change = overwrite(Arc::make_mut(&mut after), page, sectors, from, write);
        self.hash ^= change;
        self.pages.insert(page, after.clone());
        if rewrites.known.len() == REWRITES_MAX {
            rewrites.known.clear();
        }
        rewrites.known.insert(key, Rewritten { after, change, _before: before });
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

/// Gives sectors of a page a write's content, unless what they have is newer; returns by what the image's hash changes.
fn overwrite(page: &mut Page, number: u64, sectors: u8, from: u32, write: &Write) -> u64 {
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
