//! The workers, and which of them serves whom.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};

use crate::engine::seat::STUCK_AFTER;
use crate::engine::{Engine, Ring, Seat};
use crate::transport::Socket;
use crate::worker::{self, Connection, Offer, Shared, Task};

/// Workers that are started beyond those that were asked for, while all of these wait for disks that hang.
const RELIEF_MAX: usize = 64;

/// All workers of a server.
pub(super) struct Crew {
    shared: Arc<Shared>,
    /// Serve connections.
    members: Vec<Member>,
    /// As many as were asked for.
    regular: usize,
    /// Runs what exports do on their own account, however long connections wait for a disk.
    keeper: UnboundedSender<Task>,
    /// Connections that their workers may not have seen yet, and whose they are.
    given: Vec<(Arc<Offer>, usize)>,
    /// When to look whether they have.
    look_at: Instant,
}

struct Member {
    tasks: UnboundedSender<Task>,
    seat: Arc<Seat>,
}

impl Member {
    fn start(name: &str, shared: &Arc<Shared>, ring: Option<Ring>) -> anyhow::Result<Member> {
        let seat = Arc::new(Seat::default());
        Ok(Member { tasks: worker::start(name, shared.clone(), seat.clone(), ring)?, seat })
    }
}

impl Crew {
    /// Starts so many workers.
    pub(super) fn start(workers: usize, engine: Engine, shared: &Arc<Shared>) -> anyhow::Result<Crew> {
        let members = (0..)
            .zip(engine.rings(workers)?)
            .map(|(number, ring)| Member::start(&format!("worker-{number}"), shared, ring))
            .collect::<anyhow::Result<_>>()?;
        let keeper = Member::start("keeper", shared, None)?.tasks;
        for export in shared.exports.all() {
            keeper.send(Task::Keep(export)).context("the keeper has died")?;
        }
        Ok(Crew {
            shared: shared.clone(),
            members,
            regular: workers,
            keeper,
            given: Vec::new(),
            look_at: Instant::now(),
        })
    }

    /// Who keeps exports.
    pub(super) fn keeper(&self) -> &UnboundedSender<Task> {
        &self.keeper
    }

    /// Gives a connection to the worker that has the fewest.
    pub(super) fn serve(&mut self, socket: Socket, permit: OwnedSemaphorePermit) {
        let picked = self.pick();
        let worker = &self.members[picked];
        let offer = Offer::new(Connection { socket, permit, place: worker.seat.occupy() });
        if worker.tasks.send(Task::Serve(offer.clone())).is_err() {
            tracing::error!("a worker has died; the connection is dropped");
            return;
        }
        if self.given.is_empty() {
            self.look_at = Instant::now() + STUCK_AFTER;
        }
        self.given.push((offer, picked));
    }

    /// Whether some connection may not have been seen by its worker.
    pub(super) fn has_given(&self) -> bool {
        !self.given.is_empty()
    }

    /// Gives those connections to others whose worker began to wait for a disk before it saw them. Returns once all have
    /// been seen, and can be left at any time.
    pub(super) async fn see_to_it(&mut self) {
        while !self.given.is_empty() {
            sleep_until(self.look_at).await;
            self.look_at += STUCK_AFTER;
            for (offer, member) in std::mem::take(&mut self.given) {
                if !self.members[member].seat.is_stuck() {
                    if offer.is_there() {
                        self.given.push((offer, member));
                    }
                } else if let Some(Connection { socket, permit, .. }) = offer.take() {
                    self.serve(socket, permit);
                }
            }
        }
    }

    /// A worker that does not wait for a disk; another one is started if they all do.
    fn pick(&mut self) -> usize {
        let load = |member: &Member| (member.seat.is_stuck(), member.seat.connections());
        let (least, member) = self
            .members
            .iter()
            .enumerate()
            .min_by_key(|(_, member)| load(member))
            .expect("there is a worker");
        if !member.seat.is_stuck() || self.members.len() >= self.regular + RELIEF_MAX {
            return least;
        }
        let name = format!("relief-{}", self.members.len() - self.regular);
        tracing::warn!("all workers wait for their disks: starting another one");
        match Member::start(&name, &self.shared, None) {
            Ok(member) => {
                self.members.push(member);
                self.members.len() - 1
            }
            Err(error) => {
                tracing::error!("{error:#}");
                least
            }
        }
    }
}
