//! Whoever serves the failing disk: our server with its operator, or a peer.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::FailingDisk;
use crate::audit::subject::{Place, Subject};
use crate::client::Client;
use crate::operator::Operator;
use crate::server::{Endpoint, Server};
use crate::wait_for;

/// A running server.
pub(super) enum Served {
    /// Ours, to which the operator says when a loss is known.
    Ours { server: Server, operator: Operator },
    /// Another one, which has no such notion.
    Peer { child: Child, socket: PathBuf },
}

impl Served {
    /// Ours, with more words on its command line, after another one that was asked to end: it finds on record that
    /// everything is stable, unless the disk took no record either.
    pub(super) fn ours(disk: &FailingDisk, args: &[&str]) -> Served {
        let (first, _) = Served::start(disk, args);
        let _may_fail = first.terminate();
        let (server, operator) = Served::start(disk, args);
        Served::Ours { server, operator }
    }

    fn start(disk: &FailingDisk, args: &[&str]) -> (Server, Operator) {
        let operator = Operator::at(disk.dir().join("admin"));
        let builder = Server::builder().export(disk.path()).unix().args(args);
        let state = disk.dir().join("state");
        let builder = builder.args(&["--state-dir", state.to_str().expect("temporary paths are text")]);
        (operator.of(builder).start(), operator)
    }

    /// A peer.
    pub(super) fn peer(disk: &FailingDisk, subject: &Subject) -> Result<Served> {
        let socket = disk.dir().join("socket");
        let program = subject.program().with_context(|| format!("there is no {}", subject.name))?;
        let said = File::create(disk.dir().join("said"))?;
        let child = Command::new(program)
            .args(subject.words(&Place { dir: disk.dir(), disk: disk.path(), socket: &socket }))
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()?;
        Ok(Served::Peer { child, socket })
    }

    /// A new connection, as soon as it listens.
    pub(super) fn connect(&self) -> Client {
        match self {
            Served::Ours { server, .. } => Client::connect(server.endpoint()),
            Served::Peer { socket, .. } => {
                let endpoint = Endpoint::Unix(socket.clone());
                wait_for("the server to listen", || Client::try_connect(&endpoint, "").ok())
            }
        }
    }

    /// Whether no FLUSH may succeed after an error until the operator has said that the loss is known. A peer tells an
    /// error and goes on: its later FLUSHes speak of what came later.
    pub(super) fn remembers_losses(&self) -> bool {
        matches!(self, Served::Ours { .. })
    }

    /// The loss is known, and what was not stable is given up.
    pub(super) fn clear_poison(&self) {
        if let Served::Ours { operator, .. } = self {
            // Where nothing was poisoned there is nothing to clear, and it says so.
            let _may_refuse = operator.say(&["clear-poison"]);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Served::Peer { child, .. } = self {
            let _may_have_ended = child.kill();
            let _may_be_reaped = child.wait();
        }
    }
}
