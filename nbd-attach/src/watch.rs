//! `nbd-attach watch`: what happens to the attached devices, as it happens. Anyone may look.
//!
//! Keepers write what they do into their records; that a device was attached or detached is in sysfs. A change of
//! either wakes us, and what is new since the last look is printed. So nobody has to wait for us, and nothing is
//! lost while we are slow but what a record no longer holds.

use crate::config::{Output, StatusConfig};
use crate::device::Index;
use crate::event::{Entry, Event, now};
use crate::host::{Host, NotAttached};
use crate::identifier;
use crate::netlink::events::{Changes, Deaths};
use crate::registry::Registry;
use rustix::fs::inotify;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::sleep;

/// How often to look where nothing wakes us, as in a container.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Asked for by name.
    #[error(transparent)]
    NotAttached(#[from] NotAttached),
    /// sysfs is not what it should be, or stdout is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Prints what happens until the output ends.
///
/// # Errors
/// There is no such device, or nothing can be printed.
pub async fn watch(config: &StatusConfig, host: &Host, out: &mut dyn Write) -> Result<(), WatchError> {
    let only = config.device.as_ref().map(|name| host.find(name)).transpose()?.map(|device| device.index);
    let mut wakers = Wakers::new();
    let mut known = BTreeMap::new();
    loop {
        wakers.complete(host).await;
        let now_there = look(host, only)?;
        for entry in news(&known, &now_there) {
            print(&entry, config.output, out)?;
        }
        if only.is_some() && now_there.is_empty() {
            return Ok(());
        }
        known = now_there;
        if let Some(index) = wakers.woken().await
            && known.get(&index).is_some_and(|seen| !seen.kept)
        {
            let event = Event::Dead { connection: None };
            let entry = Entry { number: 0, time: now(), device: index.to_string(), event };
            print(&entry, config.output, out)?;
        }
    }
}

/// What was seen of a device.
struct Seen {
    backend: Option<String>,
    size_bytes: u64,
    kept: bool,
    events: Vec<Entry>,
}

fn look(host: &Host, only: Option<Index>) -> io::Result<BTreeMap<Index, Seen>> {
    let devices = host.sysfs.devices()?.into_iter();
    let wanted = devices.filter(|device| only.is_none_or(|index| device.index == index) && device.attached());
    let seen = wanted.map(|device| {
        let record = host.registry.record(&device);
        let kept = record.as_ref().is_some_and(|record| record.keeper.is_some());
        let events = record.map(|record| record.events).unwrap_or_default();
        let size_bytes = device.size().unwrap_or(0);
        (device.index, Seen { backend: device.backend(), size_bytes, kept, events })
    });
    Ok(seen.collect())
}

/// What is there now and was not before, in order of time.
fn news(before: &BTreeMap<Index, Seen>, after: &BTreeMap<Index, Seen>) -> Vec<Entry> {
    let entry = |index: &Index, event| Entry { number: 0, time: now(), device: index.to_string(), event };
    let same = |index: &Index, seen: &Seen, in_them: &BTreeMap<Index, Seen>| {
        in_them.get(index).is_some_and(|other| other.backend == seen.backend)
    };
    let gone = before.iter().filter(|(index, seen)| !same(index, seen, after));
    let mut found: Vec<Entry> = gone.map(|(index, _)| entry(index, Event::Detached)).collect();
    for (index, seen) in after {
        let mut told = 0;
        if same(index, seen, before) {
            told = before[index].events.last().map_or(0, |last| last.number);
        } else {
            found.push(entry(index, attached(seen)));
        }
        found.extend(seen.events.iter().filter(|entry| entry.number > told).cloned());
    }
    found
}

fn attached(seen: &Seen) -> Event {
    let told = seen.backend.as_deref().and_then(identifier::read);
    let uri = told.map(|told| told.uri.to_owned()).or_else(|| seen.backend.clone());
    let id = told.and_then(|told| told.id).map(str::to_owned);
    Event::Attached { uri: uri.unwrap_or_default(), id, size_bytes: seen.size_bytes }
}

fn print(entry: &Entry, output: Output, out: &mut dyn Write) -> io::Result<()> {
    match output {
        Output::Human => writeln!(out, "{}: {}", entry.device, entry.event.to_string().escape_debug())?,
        Output::Json => writeln!(out, "{}", serde_json::to_string(entry).map_err(io::Error::from)?)?,
    }
    out.flush()
}

/// What tells that a look is due. Each may be missing.
struct Wakers {
    records: Option<pipe::Receiver>,
    changes: Option<Changes>,
    deaths: Option<Deaths>,
    /// Whether the driver was asked for its events.
    asked: bool,
}

fn missing(error: &io::Error) {
    tracing::debug!("looking now and then instead: {error}");
}

impl Wakers {
    fn new() -> Wakers {
        let changes = Changes::listen().inspect_err(missing).ok();
        Wakers { records: None, changes, deaths: None, asked: false }
    }

    /// Listens to what was not there before: the directory of the records, and the driver, which looking at must not
    /// load.
    async fn complete(&mut self, host: &Host) {
        if self.records.is_none() {
            self.records = records(&host.registry).inspect_err(missing).ok();
        }
        if !self.asked && host.sysfs.has_driver() {
            self.asked = true;
            self.deaths = Deaths::listen().await.inspect_err(missing).ok();
        }
    }

    /// Waits, and gives the device if it was the driver that said something.
    async fn woken(&mut self) -> Option<Index> {
        tokio::select! {
            Some(()) = wait_for_records(self.records.as_mut()) => None,
            Some(Ok(())) = wait(self.changes.as_mut().map(Changes::next)) => None,
            Some(Ok(index)) = wait(self.deaths.as_mut().map(Deaths::next)) => index,
            () = sleep(LOOK_EVERY) => None,
        }
    }
}

fn records(registry: &Registry) -> io::Result<pipe::Receiver> {
    let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    // Where nothing was ever attached it is not there; then a look now and then must do.
    let renewed_or_gone = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE;
    inotify::add_watch(&inotify, registry.root(), renewed_or_gone)?;
    // Not a pipe, but read like one.
    pipe::Receiver::from_owned_fd_unchecked(inotify)
}

async fn wait_for_records(inotify: Option<&mut pipe::Receiver>) -> Option<()> {
    let mut events = [0; 4096];
    // Whatever it was, a look follows.
    inotify?.read(&mut events).await.ok().map(drop)
}

async fn wait<F: Future>(waiting: Option<F>) -> Option<F::Output> {
    Some(waiting?.await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(backend: &str, events: &[u64]) -> Seen {
        let entry = |number: &u64| Entry {
            number: *number,
            time: 0.0,
            device: "/dev/nbd1".into(),
            event: Event::Reconnected { connection: 1, seconds: 0.5 },
        };
        let events = events.iter().map(entry).collect();
        Seen { backend: Some(backend.into()), size_bytes: 512, kept: true, events }
    }

    fn told(before: Option<Seen>, after: Option<Seen>) -> Vec<(u64, String)> {
        let map = |seen: Option<Seen>| seen.map(|seen| (Index::new(1).unwrap(), seen)).into_iter().collect();
        let news = news(&map(before), &map(after));
        news.into_iter().map(|entry| (entry.number, entry.event.to_string())).collect()
    }

    #[test]
    fn only_what_is_new_is_told() {
        let back = || "connection 1 is back after 0.5 s".to_owned();
        assert_eq!(told(Some(seen("a", &[1])), Some(seen("a", &[1, 2, 3]))), [(2, back()), (3, back())]);
        assert_eq!(told(Some(seen("a", &[1])), Some(seen("a", &[1]))), []);
        assert_eq!(told(Some(seen("a", &[1])), None), [(0, "detached".to_owned())]);
        let another = told(Some(seen("a", &[1])), Some(seen("nbd://h/#data#0123456789abcdef", &[1])));
        let words = ["detached", "attached as data: nbd://h/, 512 bytes", &back()];
        assert_eq!(another.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), words);
    }
}
