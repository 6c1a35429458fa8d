//! The operator of a running server: `nbd-server ctl`, as a person or a script would use it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::disk::Disk;
use crate::server::{Builder, Server, server_tool};
use crate::tool::{self, Done};

/// Where a server hears its operator.
pub struct Operator {
    socket: PathBuf,
}

impl Operator {
    /// An operator of a server that is not yet started, beside its disk.
    #[must_use]
    pub fn beside(disk: &Disk) -> Operator {
        Operator { socket: disk.dir().join("admin") }
    }

    /// An operator of a server that is not yet started, at a socket.
    #[must_use]
    pub fn at(socket: PathBuf) -> Operator {
        Operator { socket }
    }

    /// Lets the server hear.
    #[must_use]
    pub fn of(&self, builder: Builder) -> Builder {
        builder.args(&["--admin", self.socket.to_str().expect("temporary paths are text")])
    }

    /// Where the server listens for it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says something, whatever comes of it.
    #[must_use]
    pub fn say(&self, words: &[&str]) -> Done {
        let socket = self.socket.to_str().expect("temporary paths are text");
        let mut all = vec!["ctl", "--admin", socket];
        all.extend(words);
        tool::run(server_tool(), &all)
    }

    /// Says something that must be done.
    ///
    /// # Panics
    /// When it is not.
    pub fn order(&self, words: &[&str]) -> String {
        let done = self.say(words);
        assert!(done.status.success(), "{words:?}: {}", done.stderr);
        done.stdout
    }

    /// How the only export is.
    ///
    /// # Panics
    /// When that cannot be told.
    #[must_use]
    pub fn status(&self) -> Value {
        let told: Value = serde_json::from_str(&self.order(&["list", "--json"])).expect("JSON");
        told["exports"][0].clone()
    }

    /// The epoch of the only export.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn epoch(&self) -> String {
        self.status()["epoch"].as_str().expect("an epoch").to_owned()
    }
}

/// A server of one disk in a mode, on a Unix socket and TCP, and its operator.
#[must_use]
pub fn serve(disk: &Disk, mode: &str) -> (Server, Operator) {
    let operator = Operator::beside(disk);
    let builder = Server::builder().export(disk.spec()).unix().tcp().args(&["--durability", mode]);
    (operator.of(builder).start(), operator)
}
