//! What happens to a device, told in every way at once: in the log, as a line of JSON, in the record that `status`
//! and `watch` read, and to systemd. None of them keeps the keeper waiting, and none that fails ends it.

use super::Ended;
use super::notifier::Notifier;
use crate::config::Output;
use crate::device::Index;
use crate::event::{Event, now};
use crate::host::Host;
use crate::opener::Ends;
use crate::registry::{Connection, Phase, Record, Registry, Remembered, Request, VERSION};
use crate::same::Told;
use crate::tls::kernel::Cipher;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;
use tracing_appender::non_blocking::NonBlocking;

pub(super) struct Chronicle<'a> {
    registry: &'a Registry,
    index: Index,
    record: RefCell<Record>,
    output: Output,
    out: RefCell<NonBlocking>,
    systemd: Notifier,
    /// Whether it was said that nothing can be remembered.
    forgetful: Cell<bool>,
}

impl<'a> Chronicle<'a> {
    /// Begins with saying who keeps the device.
    pub(super) fn begin(
        host: &'a Host,
        index: Index,
        mut record: Record,
        output: Output,
        out: NonBlocking,
    ) -> Chronicle<'a> {
        let pid = std::process::id();
        record.keeper = Some(pid);
        record.version = VERSION;
        record.connections.fill(Connection::Unknown);
        let chronicle = Chronicle {
            registry: &host.registry,
            index,
            record: RefCell::new(record),
            output,
            out: RefCell::new(out),
            systemd: Notifier::start(),
            forgetful: Cell::new(false),
        };
        chronicle.systemd.ready();
        chronicle.tell(Event::Kept { pid });
        chronicle
    }

    /// Tells an event.
    pub(super) fn tell(&self, event: Event) {
        let device = self.index;
        let words = format!("{device}: {event}");
        match event.is_trouble() {
            true => tracing::warn!("{words}"),
            false => tracing::info!("{words}"),
        }
        self.systemd.status(&words);
        if let Event::Reconnected { .. } = &event {
            let mut record = self.record.borrow_mut();
            record.reconnects += 1;
            record.reconnected_at = Some(now());
        }
        let entry = self.record.borrow_mut().add(device, event);
        self.remember();
        if self.output == Output::Json
            && let Ok(text) = serde_json::to_string(&entry)
        {
            // Its reader may have had enough.
            let _ = writeln!(self.out.borrow_mut(), "{text}");
        }
    }

    /// Notes how a connection is.
    pub(super) fn connection(&self, place: usize, how: Connection, between: Option<Ends>) {
        let mut record = self.record.borrow_mut();
        if let Some(known) = record.connections.get_mut(place) {
            *known = how;
        }
        if let Some(known) = record.ends.get_mut(place) {
            *known = between;
        }
        drop(record);
        self.remember();
    }

    /// The connections that an earlier keeper has made, as far as their ends are known.
    pub(super) fn orphans(&self) -> BTreeMap<usize, Ends> {
        let record = self.record.borrow();
        let all = record.connections.iter().zip(&record.ends).enumerate();
        let orphans = all.filter(|(_, (how, _))| **how == Connection::Unknown);
        orphans.filter_map(|(place, (_, ends))| Some((place, (*ends)?))).collect()
    }

    /// Notes what the kernel encrypts the newest connection with; the next event makes it known.
    pub(super) fn cipher(&self, cipher: Option<&Cipher>) {
        self.record.borrow_mut().cipher = cipher.map(Cipher::name);
    }

    /// Notes what the server said last.
    pub(super) fn told(&self, told: &Told) {
        let mut record = self.record.borrow_mut();
        record.export = Remembered::from(&told.export);
        record.epoch.clone_from(&told.epoch);
    }

    /// Notes how long requests may take, for whoever keeps the device next.
    pub(super) fn timeout(&self, timeout: Duration) {
        self.record.borrow_mut().attach.timeout = Some(timeout.as_secs());
    }

    /// Ends with saying why.
    pub(super) fn end(&self, ended: Ended) {
        match ended {
            Ended::Detached => self.registry.forget(&self.record.borrow().backend),
            Ended::Left(signal) => {
                let mut record = self.record.borrow_mut();
                record.keeper = None;
                record.connections.fill(Connection::Unknown);
                drop(record);
                self.tell(Event::Left { signal: signal.to_owned() });
            }
            Ended::HandedOver => {}
        }
    }

    /// Remembers again what somebody has removed, or there was no room for.
    pub(super) fn refresh(&self) {
        let lost = !self.registry.remembers(&self.record.borrow().backend);
        if lost || self.forgetful.get() {
            self.remember();
        }
    }

    fn remember(&self) {
        let backend = self.record.borrow().backend.clone();
        if self.registry.is_asked(Request::LetGo, &backend) && self.registry.is_disconnected(&backend) {
            self.record.borrow_mut().phase = Phase::Disconnected;
        }
        let remembered = self.registry.remember(&self.record.borrow());
        match remembered {
            Ok(()) => self.forgetful.set(false),
            Err(error) if !self.forgetful.replace(true) => {
                tracing::warn!("what happens will not be remembered for now: {error}");
            }
            Err(_) => {}
        }
    }
}
