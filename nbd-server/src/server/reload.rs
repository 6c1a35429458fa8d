//! SIGHUP: the configuration file is read again and exports are added, removed and changed, without
//! a connection of any other export noticing.
//!
//! First everything new is opened; if anything is wrong, nothing has changed. What cannot change while
//! the server runs is told and left as it is.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tracing::Instrument;

use crate::config::{Definition, Plan, path_of};
use crate::confine::{Reach, Sandbox};
use crate::durability::Mode;
use crate::engine::Pool;
use crate::export::Export;
use crate::worker::{Shared, Task};

/// Reads the configuration again.
pub struct Reloader {
    path: PathBuf,
    in_force: Plan,
    /// What can be opened, if the process is confined.
    reach: Reach,
    pool: Pool,
}

/// Another mode for an export.
struct ModeChange {
    export: Arc<Export>,
    before: Mode,
    after: Mode,
}

/// What one reload does.
struct Changes {
    added: Vec<Arc<Export>>,
    removed: Vec<String>,
    /// From the old to the new definition.
    changed: Vec<(Definition, Definition)>,
}

impl Reloader {
    /// For a server that runs by `plan`, which was read from `path`, and has kept `reach` for itself.
    #[must_use]
    pub fn new(path: PathBuf, plan: Plan, reach: Reach, pool: Pool) -> Reloader {
        Reloader { path, in_force: plan, reach, pool }
    }

    /// Reads the file and puts it in force whenever it is asked to; what happened is in the log. Modes change in the
    /// background: that waits for disks, and nobody else is to wait for these.
    pub(super) async fn serve(
        &mut self,
        asked: &Notify,
        shared: &Shared,
        keeper: &UnboundedSender<Task>,
    ) -> std::convert::Infallible {
        let mut changing = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = asked.notified() => match self.reload(shared, keeper).await {
                    Ok(modes) => changing.extend(modes.into_iter().map(ModeChange::carry_out)),
                    Err(error) => tracing::error!("nothing was reloaded: {error:#}"),
                },
                Some(failed) = changing.next() => {
                    if let Err(ModeChange { export, before, after }) = failed {
                        // Tried again by the next reload.
                        let exports = self.in_force.exports.iter_mut();
                        let same = exports.filter(|it| it.name == export.name() && it.mode == after);
                        same.for_each(|it| it.mode = before);
                    }
                }
            }
        }
    }

    async fn reload(
        &mut self,
        shared: &Shared,
        keeper: &UnboundedSender<Task>,
    ) -> anyhow::Result<Vec<ModeChange>> {
        let path = self.path.clone();
        let plan = tokio::task::spawn_blocking(move || Plan::read(&path)).await;
        let plan = plan.context("reading has panicked")??;
        let upgrader = plan.upgrader()?;
        if upgrader.is_some() != self.in_force.tls.is_some() {
            bail!("TLS cannot be switched on or off while the server runs");
        }
        let (old, new, pool) = (self.in_force.clone(), plan.clone(), self.pool.clone());
        let opened = tokio::task::spawn_blocking(move || Changes::open(&old, &new, &pool)).await;
        let changes = opened.context("opening has panicked")?.map_err(|error| self.explain(&plan, error))?;
        if plan.globals != self.in_force.globals {
            tracing::warn!("what is said outside of [tls] and [[export]] counts after a restart only");
        }
        let certificates = if upgrader.is_some() { "; the certificates were read again" } else { "" };
        *shared.tls.write().unwrap_or_else(PoisonError::into_inner) = upgrader;
        self.in_force = Plan { globals: self.in_force.globals.clone(), ..plan };
        tracing::info!("{} was reloaded: {changes}{certificates}", self.path.display());
        Ok(changes.apply(shared, keeper))
    }
}

impl Reloader {
    /// Says what confinement may have to do with it.
    fn explain(&self, plan: &Plan, error: anyhow::Error) -> anyhow::Error {
        let beyond = |export: &&Definition| {
            let path = path_of(&export.serve);
            path.is_some_and(|path| path.exists() && !self.reach.covers(path))
        };
        match plan.exports.iter().find(beyond) {
            Some(export) if self.in_force.globals.sandbox != Sandbox::Off => error.context(format!(
                "this server kept the directories of its exports for itself when it started; for {} name its \
                 directory under `directories`, then restart",
                export.serve
            )),
            _ => error,
        }
    }
}

impl Changes {
    /// Finds out what is to be done and opens what is new.
    fn open(old: &Plan, new: &Plan, pool: &Pool) -> anyhow::Result<Changes> {
        let mut changes = Changes { added: Vec::new(), removed: Vec::new(), changed: Vec::new() };
        let find = |plan: &Plan, name: &str| plan.exports.iter().find(|it| it.name == name).cloned();
        for before in &old.exports {
            match find(new, &before.name) {
                Some(after) if after.differs_in_manner_only(before) => {
                    if after != *before {
                        changes.changed.push((before.clone(), after));
                    }
                }
                _ => changes.removed.push(before.name.clone()),
            }
        }
        for after in &new.exports {
            let stays = find(old, &after.name).is_some_and(|before| after.differs_in_manner_only(&before));
            if stays {
                continue;
            }
            let path = path_of(&after.serve);
            if let Some(user) = old.exports.iter().find(|it| path.is_some() && path_of(&it.serve) == path) {
                bail!(
                    "export {:?}: {} is served as {:?} until now; remove that export first, then reload again",
                    after.name,
                    after.serve,
                    user.name
                );
            }
            let opened = new.open(after, pool).with_context(|| format!("export {:?}", after.name))?;
            changes.added.push(opened);
        }
        Ok(changes)
    }

    /// Does it, but for changes of modes, which are still to be carried out.
    fn apply(self, shared: &Shared, keeper: &UnboundedSender<Task>) -> Vec<ModeChange> {
        let mut modes = Vec::new();
        for (before, after) in self.changed {
            let Some(export) = shared.exports.get(&after.name) else { continue };
            export.present(after.text, after.admission);
            tracing::info!(export = export.name(), "changed");
            if after.mode != before.mode {
                modes.push(ModeChange { export, before: before.mode, after: after.mode });
            }
        }
        for name in self.removed {
            if shared.exports.retire(&name).is_some() {
                tracing::info!(export = name, "takes no more clients");
            }
        }
        for export in self.added {
            tracing::info!(export = export.name(), "added");
            shared.exports.add(export.clone());
            if keeper.send(Task::Keep(export)).is_err() {
                tracing::error!("a worker has died; the export's own work is not done");
            }
        }
        modes
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (added, removed, changed) = (self.added.len(), self.removed.len(), self.changed.len());
        match added + removed + changed {
            0 => f.write_str("no export has changed"),
            _ => write!(f, "exports added: {added}, removed: {removed}, changed: {changed}"),
        }
    }
}

impl ModeChange {
    /// Waits for what was acknowledged before to be stable; gives it back if the mode stays as it was.
    async fn carry_out(self) -> Result<(), ModeChange> {
        let span = self.export.span();
        let changed = self.export.change_mode(self.after).instrument(span.clone()).await;
        span.in_scope(|| match changed {
            Ok(()) => {
                tracing::info!("the mode is {} now", self.after);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the mode was not changed");
                Err(self)
            }
        })
    }
}
