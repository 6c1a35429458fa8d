//! The servers and modes that can be audited: how each is started, and what it may forgo.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{server, tool};

/// Where the servers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// This project.
    Ours,
    /// nbdkit and its file plugin.
    Nbdkit,
    /// QEMU's server.
    QemuNbd,
    /// The server of the nbd package.
    NbdServer,
}

/// What a check is about; a mode forgoes promises by the theme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// What is stable once something was answered.
    Stability,
    /// What a failed sync does to later answers.
    Failure,
    /// That a write which could not be carried out is told by its own reply.
    OwnError,
    /// Which data a range holds in the end.
    Order,
}

/// What every connection has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing: one descriptor of the file and one pool of threads serve all.
    Shared,
    /// A descriptor of the file and threads of its own.
    PerConnection,
}

/// A server in one mode.
#[derive(Debug)]
pub struct Subject {
    /// The head of its column.
    pub name: &'static str,
    /// Where it comes from.
    pub family: Family,
    /// What its connections share. The kernel tells a lost write once to every descriptor.
    pub isolation: Isolation,
    /// The system calls by which it makes data stable.
    pub syncs: &'static str,
    /// What the mode does not promise.
    pub forgoes: &'static [Theme],
    /// The name of the one export.
    pub export: &'static str,
    /// What stands on the command line, or in the export's section of the configuration file.
    pub settings: &'static [&'static str],
}

/// What others sync with, whichever they choose.
const ANY_SYNC: &str = "fdatasync,fsync,pwritev2";

const OURS: Subject = Subject {
    name: "",
    family: Family::Ours,
    isolation: Isolation::Shared,
    // Its fsync is of what is on record about the file, not of data.
    syncs: "fdatasync,pwritev2",
    forgoes: &[],
    export: "",
    settings: &[],
};

/// Everything that can be audited, one column each.
pub const SUBJECTS: &[Subject] = &[
    Subject { name: "writethrough", settings: &["--durability", "writethrough"], ..OURS },
    Subject { name: "writeback", settings: &["--durability", "writeback"], ..OURS },
    Subject {
        name: "early-ack",
        settings: &["--durability", "early-ack"],
        // A write was answered before it was tried: its error is told by the next FLUSH.
        forgoes: &[Theme::OwnError],
        ..OURS
    },
    Subject {
        name: "unsafe",
        settings: &["--durability", "unsafe"],
        forgoes: &[Theme::Stability, Theme::Failure],
        ..OURS
    },
    Subject {
        name: "nbdkit",
        family: Family::Nbdkit,
        isolation: Isolation::PerConnection,
        syncs: ANY_SYNC,
        ..OURS
    },
    Subject {
        name: "qemu-nbd",
        family: Family::QemuNbd,
        syncs: ANY_SYNC,
        // Threads, because no tracer sees what io_uring does; discard, because it ignores TRIM otherwise.
        settings: &["--aio=threads", "--discard=unmap"],
        ..OURS
    },
    Subject {
        name: "nbd-server",
        family: Family::NbdServer,
        isolation: Isolation::PerConnection,
        syncs: ANY_SYNC,
        export: "disk",
        ..OURS
    },
    Subject {
        name: "nbd-server+",
        family: Family::NbdServer,
        isolation: Isolation::PerConnection,
        syncs: ANY_SYNC,
        export: "disk",
        settings: &["flush = true", "fua = true", "trim = true"],
        ..OURS
    },
];

/// What a server is to serve, and where.
pub struct Place<'p> {
    /// For files of its own.
    pub dir: &'p Path,
    /// The file to serve.
    pub disk: &'p Path,
    /// The Unix socket to listen on.
    pub socket: &'p Path,
}

impl Subject {
    /// The subject of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Subject> {
        SUBJECTS.iter().find(|subject| subject.name == name)
    }

    /// Whether it promises that every acknowledged write is stable.
    #[must_use]
    pub fn is_writethrough(&self) -> bool {
        self.settings.contains(&"writethrough")
    }

    /// The head of the column, for those who have not seen which servers there are.
    #[must_use]
    pub fn title(&self) -> String {
        if self.family == Family::Ours { format!("ours {}", self.name) } else { self.name.to_owned() }
    }

    /// The program, if it is installed.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        match self.family {
            Family::Ours => Some(server::server_tool().to_owned()),
            Family::Nbdkit => tool::find("nbdkit", "nbdkit"),
            Family::QemuNbd => tool::find("qemu-nbd", "qemu-utils"),
            Family::NbdServer => tool::find("nbd-server", "nbd-server"),
        }
    }

    /// The words that start it, behind the program.
    #[must_use]
    pub fn words(&self, place: &Place<'_>) -> Vec<OsString> {
        let settings = self.settings.iter().map(OsString::from);
        let mut words: Vec<OsString> = match self.family {
            Family::Ours => vec!["--unix".into(), place.socket.into()],
            Family::Nbdkit => {
                vec!["--foreground".into(), "--unix".into(), place.socket.into(), "file".into()]
            }
            // By default it serves one client, and then ends.
            Family::QemuNbd => {
                let all = ["--persistent", "--shared=0", "--format=raw", "--socket"].map(OsString::from);
                all.into_iter().chain([place.socket.into()]).collect()
            }
            Family::NbdServer => {
                let config = self.write_config(place);
                return vec!["-C".into(), config.into(), "-p".into(), pid_file(place.dir).into()];
            }
        };
        words.extend(settings);
        words.push(place.disk.into());
        words
    }

    /// The file in which the server leaves its process id, if it does not keep the one it was
    /// started with.
    #[must_use]
    pub fn pid_file(&self, dir: &Path) -> Option<PathBuf> {
        // It has no way to stay in the foreground and serve more than one client.
        (self.family == Family::NbdServer).then(|| pid_file(dir))
    }

    fn write_config(&self, place: &Place<'_>) -> PathBuf {
        let path = place.dir.join("config");
        let (socket, disk) = (place.socket.display(), place.disk.display());
        let generic = format!("[generic]\nunixsock = {socket}\n");
        let export = format!("[{}]\nexportname = {disk}\n{}\n", self.export, self.settings.join("\n"));
        fs::write(&path, generic + &export).expect("a file can be written");
        path
    }
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("pid")
}
