//! How many records of TLS were sent with the same keys.
//!
//! The kernel's driver cannot renew keys, and takes a peer's renewal for a dead connection. So a connection gets new
//! keys by being replaced, before anybody's limit is reached.

use crate::sysfs::DeviceDir;
use crate::tls::kernel::Cipher;
use std::collections::{BTreeSet, VecDeque};

/// Bytes of data that are surely in one record: half of what a record holds, for servers that do not fill theirs.
const RECORD_BYTES: u64 = 8 << 10;
/// Counts what one device sends and receives. Each of its connections is taken to carry all of it.
pub(super) struct Wear {
    /// None if nothing is encrypted, or the keys do not wear out.
    limit: Option<u64>,
    /// What was asked for, instead of half of what the cipher allows.
    asked: Option<u64>,
    /// Where the count began.
    begun: Option<u64>,
    /// Places whose keys are worn out.
    worn: VecDeque<usize>,
}

/// Since when the keys have been in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// This moment.
    Now,
    /// Nobody knows: everything that the device has counted may have been sent with them.
    Ever,
}

impl Wear {
    pub(super) fn new(cipher: Option<Cipher>, asked: Option<u64>, since: Since) -> Wear {
        let begun = (since == Since::Ever).then_some(0);
        let mut wear = Wear { limit: None, asked, begun, worn: VecDeque::new() };
        wear.changed(cipher);
        wear
    }

    /// A new connection may be encrypted by something else.
    pub(super) fn changed(&mut self, cipher: Option<Cipher>) {
        let Some(cipher) = cipher else { return };
        self.limit = self.asked.or(cipher.records_max.map(|most| most / 2));
    }

    /// The place of a connection that is to be replaced now, if there is one.
    pub(super) fn worn(&mut self, device: &DeviceDir, living: &BTreeSet<usize>) -> Option<usize> {
        let limit = self.limit?;
        let now = device.transferred().ok().map(records)?;
        let begun = *self.begun.get_or_insert(now);
        if now.saturating_sub(begun) >= limit && self.worn.is_empty() {
            self.begun = Some(now);
            self.worn.extend(living);
        }
        while let Some(place) = self.worn.pop_front() {
            if living.contains(&place) {
                return Some(place);
            }
        }
        None
    }
}

/// No fewer records than were sent in the busier direction: one for every request or reply, and more for what it
/// carries.
fn records([read, written]: [(u64, u64); 2]) -> u64 {
    let requests = read.0 + written.0;
    requests + read.1.max(written.1) / RECORD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Index;
    use crate::sysfs::Sysfs;
    use std::fs;

    #[test]
    fn every_connection_is_replaced_once_per_limit() {
        let dir = tempfile::tempdir().unwrap();
        let block = dir.path().join("block/nbd0");
        fs::create_dir_all(&block).unwrap();
        let device = Sysfs::at(dir.path()).device(Index::new(0).unwrap());
        let done = |requests: u64| {
            let sectors = requests * 8;
            fs::write(block.join("stat"), format!("{requests} 0 {sectors} 0 0 0 0 0 0 0 0\n")).unwrap();
        };
        let alive = BTreeSet::from([0, 1]);
        let mut cipher = Cipher::named("TLS13_AES_128_GCM_SHA256".into());
        cipher.records_max = Some(2000);
        let mut wear = Wear::new(Some(cipher.clone()), None, Since::Now);
        done(10_000);
        assert_eq!(wear.worn(&device, &alive), None, "what was before us does not count");
        done(10_600);
        assert_eq!(wear.worn(&device, &alive), None, "900 records");
        done(10_700);
        assert_eq!([wear.worn(&device, &alive), wear.worn(&device, &alive)], [Some(0), Some(1)]);
        assert_eq!(wear.worn(&device, &alive), None);
        let mut inherited = Wear::new(Some(cipher), None, Since::Ever);
        assert_eq!(inherited.worn(&device, &alive), Some(0), "what was before may have worn them");
        let mut plain = Wear::new(None, Some(1), Since::Now);
        assert_eq!(plain.worn(&device, &alive), None);
        done(20_000);
        assert_eq!(plain.worn(&device, &alive), None);
    }
}
