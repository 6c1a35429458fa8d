//! SIGHUP: the configuration file is read again and exports are added, removed and changed, without
//! a connection of any other export noticing.
//!
//! A file that cannot be read or means nothing changes nothing. Beyond that each export stands for itself: one that
//! cannot be opened is told in the log and tried again by the next reload, and one whose disk is slow is waited for
//! in the background. An export that is to serve something else ends and begins anew; whoever is to serve what
//! another still holds begins once that has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tracing::Instrument;

use crate::admin::look_again;
use crate::config::{Definition, Locks, Plan, path_of};
use crate::confine::{Reach, Sandbox};
use crate::durability::Mode;
use crate::engine::Pool;
use crate::export::Export;
use crate::worker::{Shared, Task};

/// Reads the configuration again.
pub struct Reloader {
    path: PathBuf,
    /// What the file said when it was read last.
    wanted: Arc<Plan>,
    /// How often it was read.
    generation: watch::Sender<u64>,
    /// What is served, by name.
    served: BTreeMap<String, Definition>,
    /// For whom something is under way; they are looked at again when it is done.
    busy: BTreeSet<String>,
    /// What can be opened, if the process is confined.
    reach: Reach,
    pool: Pool,
    locks: Locks,
}

/// Something that is done for an export in the background.
type Job<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

/// What came of a job.
enum Done {
    /// The export's mode is another one.
    Mode(Arc<Export>),
    /// It is the old one.
    ModeKept(Arc<Export>, Mode),
    /// An export was opened.
    Opened(Definition, Arc<Export>),
    /// It was not, and what has that name is served as before.
    Refused(Definition, anyhow::Error),
    /// It was not, and nothing is served under its name.
    Failed(Definition, anyhow::Error),
    /// The file was read again meanwhile.
    Overtaken(Definition),
    /// What is served was looked at.
    Looked,
}

impl Reloader {
    /// For a server that runs by `plan`, which was read from `path`, and has kept `reach` for itself.
    #[must_use]
    pub fn new(path: PathBuf, plan: Plan, reach: Reach, pool: Pool, locks: Locks) -> Reloader {
        let served = plan.exports.iter().map(|it| (it.name.clone(), it.clone())).collect();
        let (generation, _) = watch::channel(0);
        let (wanted, busy) = (Arc::new(plan), BTreeSet::new());
        Reloader { path, wanted, generation, served, busy, reach, pool, locks }
    }

    /// Reads the file and puts it in force whenever it is asked to; what happened is in the log.
    pub(super) async fn serve(
        &mut self,
        asked: &Notify,
        shared: &Shared,
        keeper: &UnboundedSender<Task>,
    ) -> std::convert::Infallible {
        let mut jobs = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = asked.notified() => match self.read(shared).await {
                    Ok(()) => jobs.extend(self.begin(shared)),
                    Err(error) => tracing::error!("nothing was reloaded: {error:#}"),
                },
                Some(done) = jobs.next() => jobs.extend(self.end(done, shared, keeper)),
            }
        }
    }

    /// Reads the file; it changes nothing if it is wrong as a whole.
    async fn read(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let path = self.path.clone();
        let read = spawn_blocking(move || {
            let plan = Plan::read(&path)?;
            let upgrader = plan.upgrader()?;
            anyhow::Ok((plan, upgrader))
        });
        let (plan, upgrader) = read.await.context("reading has panicked")??;
        if upgrader.is_some() != self.wanted.tls.is_some() {
            bail!("TLS cannot be switched on or off while the server runs");
        }
        if plan.globals != self.wanted.globals {
            tracing::warn!("what is said outside of [tls] and [[export]] counts after a restart only");
        }
        if upgrader.is_some() {
            tracing::info!("the certificates were read again; connections that are open keep theirs");
        }
        *shared.tls.write().unwrap_or_else(PoisonError::into_inner) = upgrader;
        self.wanted = Arc::new(Plan { globals: self.wanted.globals.clone(), ..plan });
        self.generation.send_modify(|number| *number += 1);
        Ok(())
    }

    /// Puts what was read in force, as far as that can be done at once.
    fn begin<'a>(&mut self, shared: &'a Shared) -> Vec<Job<'a>> {
        let wanted = self.wanted.exports.iter().map(|it| it.name.clone());
        let names: BTreeSet<String> = wanted.chain(self.served.keys().cloned()).collect();
        tracing::info!("{} was reloaded: {}", self.path.display(), self.differences(&names));
        let mut jobs: Vec<Job<'a>> = names.iter().filter_map(|name| self.settle(name, shared)).collect();
        jobs.push(Box::pin(async {
            look_again(&shared.exports.all()).await;
            Done::Looked
        }));
        jobs
    }

    /// Brings one export closer to what it shall be.
    fn settle<'a>(&mut self, name: &str, shared: &'a Shared) -> Option<Job<'a>> {
        if self.busy.contains(name) {
            return None;
        }
        let Some(after) = self.wanted(name).cloned() else {
            self.served.remove(name)?;
            if shared.exports.retire(name).is_some() {
                tracing::info!(export = name, "takes no more clients");
            }
            return None;
        };
        let job: Job<'a> = match self.served.insert(name.to_owned(), after.clone()) {
            Some(before) if before == after => return None,
            Some(before) if after.differs_in_manner_only(&before) => {
                let export = shared.exports.get(name)?;
                let unwelcome = export.present(after.text, after.admission);
                let span = export.span();
                span.in_scope(|| tracing::info!("changed"));
                if unwelcome > 0 {
                    span.in_scope(|| {
                        tracing::info!(connections = unwelcome, "may no longer use it and are ended");
                    });
                }
                if before.mode == after.mode {
                    return None;
                }
                Box::pin(change_mode(export, before.mode, after.mode))
            }
            before => {
                // Until it is opened.
                match &before {
                    Some(before) => self.served.insert(name.to_owned(), before.clone()),
                    None => self.served.remove(name),
                };
                Box::pin(self.opening(after, shared))
            }
        };
        self.busy.insert(name.to_owned());
        Some(job)
    }

    /// Opens what an export is to serve, once nobody else of this server holds it; what has its name ends before.
    fn opening<'a>(&self, definition: Definition, shared: &'a Shared) -> impl Future<Output = Done> + 'a {
        let (plan, mut generation) = (self.wanted.clone(), self.generation.subscribe());
        let (pool, locks) = (self.pool.clone(), self.locks.clone());
        async move {
            let holders = {
                let (definition, all) = (definition.clone(), shared.exports.unclosed());
                spawn_blocking(move || definition.check().map(|()| holders(&definition, &all)))
            };
            let mut holders = match holders.await.context("checking has panicked").flatten() {
                Ok(holders) => holders,
                Err(error) => return Done::Refused(definition, error),
            };
            if let Some(before) = shared.exports.retire(&definition.name) {
                tracing::info!(export = definition.name, "ends, to be served in another way");
                holders.push(before);
            }
            let released: Vec<_> = holders
                .into_iter()
                .map(|holder| {
                    tracing::debug!(export = definition.name, "waits for the end of {:?}", holder.name());
                    holder.released()
                })
                .collect();
            tokio::select! {
                _ = join_all(released) => {}
                _ = generation.changed() => return Done::Overtaken(definition),
            }
            let opened = {
                let definition = definition.clone();
                spawn_blocking(move || plan.open(&definition, &pool, &locks))
            };
            match opened.await.context("opening has panicked").flatten() {
                Ok(export) => Done::Opened(definition, export),
                Err(error) => Done::Failed(definition, error),
            }
        }
    }

    /// Notes what a job has done; there may be more to do for its export.
    fn end<'a>(&mut self, done: Done, shared: &'a Shared, keeper: &UnboundedSender<Task>) -> Option<Job<'a>> {
        let name = match done {
            Done::Looked => return None,
            Done::Mode(export) => export.name().to_owned(),
            Done::ModeKept(export, mode) => {
                // Tried again by the next reload.
                self.served.entry(export.name().to_owned()).and_modify(|it| it.mode = mode);
                self.busy.remove(export.name());
                return None;
            }
            Done::Overtaken(definition) => {
                // What had its name may have ended already.
                if shared.exports.get(&definition.name).is_none() {
                    self.served.remove(&definition.name);
                }
                definition.name
            }
            Done::Opened(definition, export) => {
                tracing::info!(export = export.name(), "added");
                shared.exports.add(export.clone());
                if keeper.send(Task::Keep(export)).is_err() {
                    tracing::error!("a worker has died; the export's own work is not done");
                }
                let name = definition.name.clone();
                self.served.insert(name.clone(), definition);
                name
            }
            Done::Refused(definition, error) => {
                let error = self.explain(&definition, error);
                tracing::error!(export = definition.name, "was not changed or added: {error:#}");
                self.busy.remove(&definition.name);
                return None;
            }
            Done::Failed(definition, error) => {
                let error = self.explain(&definition, error);
                tracing::error!(
                    export = definition.name,
                    "is not served: {error:#}; the next reload tries again"
                );
                self.busy.remove(&definition.name);
                self.served.remove(&definition.name);
                return None;
            }
        };
        self.busy.remove(&name);
        self.settle(&name, shared)
    }

    /// What is still to be done, in words.
    fn differences(&self, names: &BTreeSet<String>) -> String {
        let (mut added, mut removed, mut changed) = (0, 0, 0);
        for name in names {
            match (self.served.get(name), self.wanted(name)) {
                (None, _) => added += 1,
                (_, None) => removed += 1,
                (before, after) => changed += usize::from(before != after),
            }
        }
        match added + removed + changed {
            0 => "no export has changed".to_owned(),
            _ => format!("exports to add: {added}, to remove: {removed}, to change: {changed}"),
        }
    }

    fn wanted(&self, name: &str) -> Option<&Definition> {
        self.wanted.exports.iter().find(|it| it.name == name)
    }

    /// Says what confinement may have to do with it.
    fn explain(&self, export: &Definition, error: anyhow::Error) -> anyhow::Error {
        let is_beyond = path_of(&export.serve).is_some_and(|path| path.exists() && !self.reach.covers(path));
        if !is_beyond || self.wanted.globals.sandbox == Sandbox::Off {
            return error;
        }
        error.context(format!(
            "this server kept the directories of its exports for itself when it started; for {} name its directory \
             under `directories`, then restart",
            export.serve
        ))
    }
}

/// The other exports that hold what is to be served and do not share it. It may wait for a disk.
fn holders(definition: &Definition, all: &[Arc<Export>]) -> Vec<Arc<Export>> {
    let Some(path) = path_of(&definition.serve) else { return Vec::new() };
    let shares = |export: &Export| definition.is_read_only() || export.shape().read_only;
    let holds =
        |export: &&Arc<Export>| !shares(export) && export.source().is_some_and(|source| source.is_at(path));
    all.iter().filter(holds).cloned().collect()
}

/// Waits for what was acknowledged before to be stable.
async fn change_mode(export: Arc<Export>, before: Mode, after: Mode) -> Done {
    let span = export.span();
    let changed = export.change_mode(after).instrument(span.clone()).await;
    span.in_scope(|| match changed {
        Ok(()) => {
            tracing::info!("the mode is {after} now");
            Done::Mode(export)
        }
        Err(error) => {
            tracing::error!(%error, "the mode was not changed");
            Done::ModeKept(export, before)
        }
    })
}
