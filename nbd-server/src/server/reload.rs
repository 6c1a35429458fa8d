//! SIGHUP: the configuration file is read again and exports are added, removed and changed, without
//! a connection of any other export noticing.
//!
//! First everything new is opened; if anything is wrong, nothing has changed. What cannot change while
//! the server runs is told and left as it is.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, bail};
use tokio::sync::mpsc::UnboundedSender;

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

    /// Reads the file and puts it in force; what happened is in the log.
    pub(super) async fn reload(&mut self, shared: &Shared, keeper: &UnboundedSender<Task>) {
        match self.try_reload(shared, keeper).await {
            Ok(()) => {}
            Err(error) => tracing::error!("nothing was reloaded: {error:#}"),
        }
    }

    async fn try_reload(&mut self, shared: &Shared, keeper: &UnboundedSender<Task>) -> anyhow::Result<()> {
        let plan = Plan::read(&self.path)?;
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
        *shared.tls.write().unwrap_or_else(PoisonError::into_inner) = upgrader;
        self.in_force = Plan { globals: self.in_force.globals.clone(), ..plan };
        for (name, mode) in changes.apply(shared, keeper).await {
            // Tried again by the next reload.
            self.in_force.exports.iter_mut().filter(|it| it.name == name).for_each(|it| it.mode = mode);
        }
        Ok(())
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

    /// Does it; returns the exports that stay in their old mode, and that.
    async fn apply(self, shared: &Shared, keeper: &UnboundedSender<Task>) -> Vec<(String, Mode)> {
        let mut unchanged = Vec::new();
        for (before, after) in self.changed {
            let Some(export) = shared.exports.get(&after.name) else { continue };
            export.present(after.text, after.admission);
            if after.mode != before.mode
                && let Err(error) = export.change_mode(after.mode).await
            {
                tracing::error!(export = export.name(), %error, "the mode was not changed");
                unchanged.push((after.name, before.mode));
            }
            tracing::info!(export = export.name(), "changed");
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
        unchanged
    }
}
