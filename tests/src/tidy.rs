//! The rules of the house, checked on source text.
//!
//! Each rule takes a [`Source`] and returns its faults, so that a planted bad text shows that the
//! rule can fail. What is allowed by name must be needed: an exception that nobody uses any more
//! is a fault too.

mod code;

use std::fs;
use std::path::Path;

pub use code::{functions, paths, product, tokens};

/// Lines a source file may have.
pub const FILE_LINES_MAX: usize = 600;
/// Lines a function may have.
pub const FUNCTION_LINES_MAX: usize = 60;

/// One source file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it is in the workspace, with slashes.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// Who may use whom inside `nbd-server`; the table in its `lib.rs` in another notation.
pub const ROOMS: &[(&str, &[&str])] = &[
    ("buf", &[]),
    ("confine", &[]),
    ("engine", &["buf"]),
    ("metrics", &[]),
    ("tls", &[]),
    ("transport", &["engine"]),
    ("device", &["buf"]),
    ("backend", &["buf", "device", "engine"]),
    ("layer", &["buf", "device"]),
    ("durability", &["buf", "device"]),
    ("epoch_store", &["device", "durability", "engine"]),
    ("export", &["device", "durability", "metrics"]),
    ("session", &["buf", "device", "durability", "export", "metrics"]),
    ("listen", &["confine", "transport"]),
    ("worker", &["device", "durability", "engine", "export", "session", "tls", "transport"]),
    ("admin", &["confine", "durability", "export", "listen"]),
    ("cli", &["confine", "durability", "engine"]),
    ("ctl", &["admin", "cli"]),
    (
        "config",
        &[
            "backend",
            "cli",
            "confine",
            "device",
            "durability",
            "engine",
            "epoch_store",
            "export",
            "layer",
            "tls",
        ],
    ),
    (
        "server",
        &[
            "admin",
            "buf",
            "config",
            "confine",
            "durability",
            "engine",
            "export",
            "listen",
            "session",
            "transport",
            "worker",
        ],
    ),
];

/// Rooms that a seeded executor must be able to drive: no runtime, no clock, no threads, no
/// sockets.
pub const RUNTIME_FREE: &[&str] =
    &["backend", "buf", "device", "durability", "export", "layer", "metrics", "session"];

/// Files whose product code may sleep, and why.
pub const MAY_SLEEP: &[(&str, &str)] = &[
    ("nbd-server/src/config/lock.rs", "no client waits for it, while udev looks at a new device"),
    ("nbd-server/src/epoch_store/attribute.rs", "at the end of an export, until a stamp of time is past"),
];

/// Where `unsafe` may stand.
pub const MAY_BE_UNSAFE: &str = "nbd-server/src/engine/";

/// Every Rust file of the workspace.
#[must_use]
pub fn workspace() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace");
    let mut sources = Vec::new();
    for member in fs::read_dir(root).expect("the workspace can be read") {
        let member = member.expect("the workspace can be read").path();
        if member.join("Cargo.toml").exists() {
            collect(root, &member, &mut sources);
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn collect(root: &Path, dir: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        if path.is_dir() && !path.ends_with("target") {
            collect(root, &path, sources);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).expect("source is UTF-8");
            let path = path.strip_prefix(root).expect("it is inside").to_string_lossy().into_owned();
            sources.push(Source { path, text });
        }
    }
}

/// Files that need scrolling for their picture.
#[must_use]
pub fn too_long(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let fault = format!("{}: {lines} lines, more than {FILE_LINES_MAX}", source.path);
    if lines > FILE_LINES_MAX { vec![fault] } else { vec![] }
}

/// Functions that need scrolling.
#[must_use]
pub fn long_functions(source: &Source) -> Vec<String> {
    let long = functions(&source.text).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES_MAX);
    long.map(|(name, lines)| format!("{}: {name} has {lines} lines", source.path)).collect()
}

/// Macros that are left over from work in progress.
#[must_use]
pub fn leftovers(source: &Source) -> Vec<String> {
    let tokens = tokens(&source.text);
    let left = tokens
        .windows(2)
        .filter(|pair| matches!(pair[0].as_str(), "todo" | "unimplemented" | "dbg") && pair[1] == "!");
    left.map(|pair| format!("{}: {}! is left over", source.path, pair[0])).collect()
}

/// `unsafe` where no reader expects it.
#[must_use]
pub fn stray_unsafe(source: &Source) -> Vec<String> {
    let stray = !source.path.starts_with(MAY_BE_UNSAFE) && tokens(&source.text).iter().any(|t| t == "unsafe");
    if stray { vec![format!("{}: unsafe outside {MAY_BE_UNSAFE}", source.path)] } else { vec![] }
}

/// Product code that sleeps instead of waiting for something.
#[must_use]
pub fn sleeps(source: &Source) -> bool {
    is_product(source) && paths(product(&source.text)).iter().any(|path| path.ends_with("thread::sleep"))
}

/// Sleepers without an entry in [`MAY_SLEEP`].
#[must_use]
pub fn stray_sleeps(source: &Source) -> Vec<String> {
    let allowed = MAY_SLEEP.iter().any(|(path, _)| *path == source.path);
    if sleeps(source) && !allowed { vec![format!("{}: product code sleeps", source.path)] } else { vec![] }
}

/// Imports that the architecture forbids.
#[must_use]
pub fn forbidden_imports(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    let used = paths(product(&source.text));
    let mut ban = |bans: &[&str], room: &str| {
        for path in used.iter().filter(|path| bans.iter().any(|ban| starts_with(path, ban))) {
            faults.push(format!("{}: {room} must not use {path}", source.path));
        }
    };
    if source.path.starts_with("common/src/") {
        ban(
            &["tokio", "std::net", "std::fs", "std::time", "std::thread", "std::process", "std::env"],
            "common",
        );
    }
    for apart in ["tests/", "vm-tests/", "xtask/", "common/", "nbd-attach/", "recording/"] {
        if source.path.starts_with(apart) {
            ban(&["nbd_server", "nbd_crash"], apart);
        }
        if source.path.starts_with(apart) && apart != "nbd-attach/" {
            ban(&["nbd_attach"], apart);
        }
    }
    let Some(room) = room(&source.path) else { return faults };
    if RUNTIME_FREE.contains(&room) {
        // `tokio::sync` works under any executor ("Runtime compatibility" in its documentation).
        let runtime = ["tokio_util", "std::thread"];
        // Addresses are values; whoever has a socket can wait.
        let sockets =
            ["TcpListener", "TcpStream", "ToSocketAddrs", "UdpSocket"].map(|it| format!("std::net::{it}"));
        let sockets: Vec<&str> = sockets.iter().map(String::as_str).collect();
        let clocks = ["std::time::Instant", "std::time::SystemTime"];
        ban(&[&runtime[..], &sockets, &clocks].concat(), room);
        let needs_runtime = |path: &&String| starts_with(path, "tokio") && !starts_with(path, "tokio::sync");
        for path in used.iter().filter(needs_runtime) {
            faults.push(format!("{}: {room} must not use {path}", source.path));
        }
    }
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{}: {room} has no row in the table of rooms", source.path)];
    };
    for path in &used {
        let Some(other) = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next()) else {
            continue;
        };
        let is_room = ROOMS.iter().any(|(name, _)| *name == other);
        if is_room && other != room && !allowed.contains(&other) {
            faults.push(format!("{}: {room} must not use {other}", source.path));
        }
    }
    faults
}

/// Dependencies in a manifest that the architecture forbids.
#[must_use]
pub fn forbidden_dependencies(member: &str, manifest: &str) -> Vec<String> {
    let bans: &[&str] = match member {
        "common" => &["tokio", "nbd-server", "nbd-attach", "nix", "rustix"],
        "nbd-server" => &["nbd-attach", "nbd-crash"],
        "nbd-crash" => &["nbd-attach"],
        "recording" => &["tokio", "common", "nbd-server", "nbd-crash"],
        _ => &["nbd-server", "nbd-crash"],
    };
    let names = manifest.lines().filter_map(|line| line.split(['.', '=', ' ']).next());
    let banned =
        names.filter(|name| bans.contains(name) || (*name == "nbd-attach" && member != "nbd-attach"));
    banned.map(|name| format!("{member} must not depend on {name}")).collect()
}

/// The room of `nbd-server` that a file belongs to.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("nbd-server/src/")?.strip_suffix(".rs")?;
    let room = inside.split('/').next()?;
    (room != "lib" && room != "main").then_some(room)
}

fn is_product(source: &Source) -> bool {
    ["common/src/", "recording/src/", "nbd-server/src/", "nbd-attach/src/", "nbd-crash/src/"]
        .iter()
        .any(|dir| source.path.starts_with(dir))
}

fn starts_with(path: &str, ban: &str) -> bool {
    path.strip_prefix(ban).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
