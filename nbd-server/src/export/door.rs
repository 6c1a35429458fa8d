//! Who may use an export, and who does.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
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
        near && named
    }
}

/// The door of one export.
pub(super) struct Door {
    state: Mutex<State>,
    retired: Shared<oneshot::Receiver<()>>,
}

struct State {
    admission: Admission,
    open: usize,
    /// Gone once the export is retired.
    retire: Option<oneshot::Sender<()>>,
    waiting: Vec<Waker>,
}

impl Door {
    pub(super) fn new(admission: Admission) -> Door {
        let (retire, retired) = oneshot::channel();
        let state = State { admission, open: 0, retire: Some(retire), waiting: Vec::new() };
        Door { state: Mutex::new(state), retired: retired.shared() }
    }

    pub(super) fn admits(&self, peer: &Peer) -> bool {
        self.lock().admission.admits(peer)
    }

    pub(super) fn change(&self, admission: Admission) {
        self.lock().admission = admission;
    }

    /// One more connection, if there may be one more.
    fn enter(&self) -> bool {
        let mut state = self.lock();
        let is_full = state.admission.connections_max.is_some_and(|max| state.open >= max);
        let enters = !is_full && state.retire.is_some();
        state.open += usize::from(enters);
        enters
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.open -= 1;
        if state.open == 0 {
            std::mem::take(&mut state.waiting).into_iter().for_each(Waker::wake);
        }
    }

    fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.open == 0 {
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
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.export.counters.disconnected();
        self.export.door.leave();
    }
}

impl Export {
    /// Lets a connection in, unless as many as may be are in, or the export is retired.
    #[must_use]
    pub fn visit(self: &Arc<Export>) -> Option<Visit> {
        self.door.enter().then(|| {
            self.counters.connected();
            Visit { export: self.clone() }
        })
    }

    /// Lets nobody in any more and asks those who are in to leave.
    pub fn retire(&self) {
        // All who listen are told when the sender goes.
        drop(self.door.lock().retire.take());
    }

    /// Resolves once the export is retired.
    pub fn retired(&self) -> impl Future<Output = ()> + Unpin + 'static {
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
        Peer { origin, names }
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
        let machine = Peer { origin: Origin::Machine(3), names: vec![] };
        assert!(open.admits(&machine) && !near.admits(&machine), "it is in none of the networks");
        let named = Admission { names: vec!["a".into(), "b".into()], ..near };
        assert!(named.admits(&peer(Some("192.0.2.1"), &["x", "b"])));
        assert!(!named.admits(&peer(Some("192.0.2.1"), &["x"])) && !named.admits(&peer(None, &[])));
        assert!(!named.admits(&peer(Some("192.0.3.1"), &["a"])));
    }
}
