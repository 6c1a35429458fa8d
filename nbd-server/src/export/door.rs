//! Who may use an export, and who does.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use futures::future::select;
use ipnet::IpNet;

use super::Export;

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// On this host: the permissions of a Unix socket have let it in.
    Host,
    /// At an address.
    Address(IpAddr),
    /// In a virtual machine, by its context id, or on the host of this one.
    Machine(u32),
}

/// A client, as far as the server can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub origin: Origin,
    /// The names its certificate gives it, if it has shown one.
    pub names: Vec<String>,
    /// How it is talked to.
    pub secrecy: Secrecy,
}

/// Whether others can listen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Secrecy {
    /// In the clear.
    #[default]
    Clear,
    /// By TLS.
    Encrypted,
}

/// Who may use an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Networks from which it may be reached, beside this host; from everywhere if there are none.
    pub addresses: Vec<IpNet>,
    /// Names of which a client's certificate must have one; any client will do if there are none.
    pub names: Vec<String>,
    /// Connections at a time.
    pub connections_max: Option<usize>,
    /// What a client must speak at least.
    pub secrecy: Secrecy,
}

impl Admission {
    /// Whether a client may know of the export at all.
    fn admits(&self, peer: &Peer) -> bool {
        let near = self.addresses.is_empty()
            || match peer.origin {
                Origin::Host => true,
                Origin::Address(address) => {
                    self.addresses.iter().any(|net| net.contains(&address.to_canonical()))
                }
                Origin::Machine(_) => false,
            };
        let named = self.names.is_empty() || self.names.iter().any(|name| peer.names.contains(name));
        let secret = self.secrecy == Secrecy::Clear || peer.secrecy == Secrecy::Encrypted;
        near && named && secret
    }
}

/// The door of one export.
pub(super) struct Door {
    state: Mutex<State>,
    retired: Shared<oneshot::Receiver<()>>,
    cut: Shared<oneshot::Receiver<()>>,
}

struct State {
    admission: Admission,
    /// Who is in, and how to ask them to leave, by the number of their visit.
    visitors: BTreeMap<u64, (Peer, Option<oneshot::Sender<()>>)>,
    next_visit: u64,
    /// Gone once the export is retired.
    retire: Option<oneshot::Sender<()>>,
    /// Gone once its clients are given up.
    give_up: Option<oneshot::Sender<()>>,
    waiting: Vec<Waker>,
}

impl Door {
    pub(super) fn new(admission: Admission) -> Door {
        let (retire, retired) = oneshot::channel();
        let (give_up, cut) = oneshot::channel();
        let state = State {
            admission,
            visitors: BTreeMap::new(),
            next_visit: 0,
            retire: Some(retire),
            give_up: Some(give_up),
            waiting: Vec::new(),
        };
        Door { state: Mutex::new(state), retired: retired.shared(), cut: cut.shared() }
    }

    pub(super) fn admits(&self, peer: &Peer) -> bool {
        self.lock().admission.admits(peer)
    }

    /// Asks those to leave who are admitted no more, and tells how many they are.
    pub(super) fn change(&self, admission: Admission) -> usize {
        let mut state = self.lock();
        let admits = |peer: &Peer| admission.admits(peer);
        let unwelcome = state.visitors.values_mut().filter(|(peer, _)| !admits(peer));
        let told = unwelcome.filter_map(|(_, leave)| leave.take()).count();
        state.admission = admission;
        told
    }

    /// One more connection, if there may be one more: its number, and what resolves when it shall leave.
    fn enter(&self, peer: &Peer) -> Option<(u64, oneshot::Receiver<()>)> {
        let mut state = self.lock();
        let is_full = state.admission.connections_max.is_some_and(|max| state.visitors.len() >= max);
        if is_full || state.retire.is_none() || !state.admission.admits(peer) {
            return None;
        }
        let (leave, told) = oneshot::channel();
        let number = state.next_visit;
        state.next_visit += 1;
        state.visitors.insert(number, (peer.clone(), Some(leave)));
        Some((number, told))
    }

    fn leave(&self, visit: u64) {
        let mut state = self.lock();
        state.visitors.remove(&visit);
        if state.visitors.is_empty() {
            std::mem::take(&mut state.waiting).into_iter().for_each(Waker::wake);
        }
    }

    fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.visitors.is_empty() {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's hold on an export; it has left when this is dropped.
pub struct Visit {
    export: Arc<Export>,
    number: u64,
    leave: Option<oneshot::Receiver<()>>,
}

impl Visit {
    /// Resolves once it shall end: the export is retired, or does not admit this client any more.
    ///
    /// # Panics
    /// When it was asked before.
    pub fn end(&mut self) -> impl Future<Output = ()> + Unpin + 'static + use<> {
        let leave = self.leave.take().expect("asked once");
        select(leave, self.export.retired()).map(|_either| ())
    }

    /// Resolves once nobody waits for this client any more: the export was retired long ago.
    pub fn cut(&self) -> impl Future<Output = ()> + Unpin + 'static + use<> {
        self.export.door.cut.clone().map(|_sender_is_gone| ())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.export.counters.disconnected();
        self.export.door.leave(self.number);
    }
}

impl Export {
    /// Lets a connection in, unless as many as may be are in, it is not admitted, or the export is retired.
    #[must_use]
    pub fn visit(self: &Arc<Export>, peer: &Peer) -> Option<Visit> {
        let (number, leave) = self.door.enter(peer)?;
        self.counters.connected();
        Some(Visit { export: self.clone(), number, leave: Some(leave) })
    }

    /// Lets nobody in any more and asks those who are in to leave.
    pub fn retire(&self) {
        // All who listen are told when the sender goes.
        drop(self.door.lock().retire.take());
    }

    /// Whether it is retired.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.door.lock().retire.is_none()
    }

    /// Gives up those who are still in.
    pub fn give_up(&self) {
        drop(self.door.lock().give_up.take());
    }

    /// Resolves once the export is retired.
    pub fn retired(&self) -> impl Future<Output = ()> + Unpin + 'static + use<> {
        self.door.retired.clone().map(|_sender_is_gone| ())
    }

    /// Resolves when no connection is in.
    pub async fn empty(&self) {
        poll_fn(|cx| self.door.poll_empty(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: Option<&str>, names: &[&str]) -> Peer {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let origin = address.map_or(Origin::Host, |text| Origin::Address(text.parse().unwrap()));
        Peer { origin, names, secrecy: Secrecy::Clear }
    }

    #[test]
    fn admission_is_by_network_and_by_name() {
        let open = Admission::default();
        assert!(open.admits(&peer(Some("192.0.2.1"), &[])) && open.admits(&peer(None, &[])));
        let near = Admission {
            addresses: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ..Admission::default()
        };
        for (address, is_admitted) in [
            (Some("192.0.2.77"), true),
            (Some("::ffff:192.0.2.77"), true),
            (Some("2001:db8::1"), true),
            (Some("192.0.3.1"), false),
            (Some("::1"), false),
            (None, true),
        ] {
            assert_eq!(near.admits(&peer(address, &[])), is_admitted, "{address:?}");
        }
        let machine = Peer { origin: Origin::Machine(3), names: vec![], secrecy: Secrecy::Clear };
        assert!(open.admits(&machine) && !near.admits(&machine), "it is in none of the networks");
        let named = Admission { names: vec!["a".into(), "b".into()], ..near };
        assert!(named.admits(&peer(Some("192.0.2.1"), &["x", "b"])));
        assert!(!named.admits(&peer(Some("192.0.2.1"), &["x"])) && !named.admits(&peer(None, &[])));
        assert!(!named.admits(&peer(Some("192.0.3.1"), &["a"])));
        let secret = Admission { secrecy: Secrecy::Encrypted, ..Admission::default() };
        assert!(!secret.admits(&peer(None, &[])));
        assert!(secret.admits(&Peer { secrecy: Secrecy::Encrypted, ..peer(None, &[]) }));
    }
}
