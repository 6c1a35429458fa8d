//! Proves that the house keeps its rules: who imports whom, how long files and functions are,
//! where `unsafe` and sleeping are allowed, and that nothing half-done is left. Each rule is also
//! shown a text that breaks it, so none of them can pass by being blind.

use tests::tidy::{self, MAY_SLEEP, ROOMS, RUNTIME_FREE, Source};

/// Files and functions that are longer than they may be, until somebody splits them.
const RATCHET: &[&str] = &[];

fn faults(rule: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    let sources = tidy::workspace();
    assert!(sources.len() > 40, "the workspace was found");
    let faults = sources.iter().flat_map(rule);
    faults.filter(|fault| !RATCHET.iter().any(|known| fault.starts_with(known))).collect()
}

fn planted(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

const NOTHING: &[String] = &[];

#[test]
fn files_and_functions_need_no_scrolling() {
    assert_eq!(faults(tidy::too_long), NOTHING);
    assert_eq!(faults(tidy::long_functions), NOTHING);
    assert_eq!(tidy::too_long(&planted("x.rs", &"\n".repeat(tidy::FILE_LINES_MAX + 1))).len(), 1);
    let body = "    work();\n".repeat(59);
    let long =
        planted("x.rs", &format!("fn fits() {{\n{body}}}\n#[test]\nfn long() {{\n    more();\n{body}}}\n"));
    assert_eq!(tidy::long_functions(&long), ["x.rs: fits has 61 lines", "x.rs: long has 62 lines"]);
}

#[test]
fn the_ratchet_holds_only_what_is_needed() {
    let sources = tidy::workspace();
    let long = |known: &&str| {
        let faults = sources.iter().flat_map(|source| [tidy::too_long(source), tidy::long_functions(source)]);
        faults.flatten().any(|fault| fault.starts_with(known))
    };
    assert!(RATCHET.iter().all(long), "something was split: take it off the ratchet");
}

#[test]
fn nothing_half_done_is_left() {
    assert_eq!(faults(tidy::leftovers), NOTHING);
    for bad in ["fn f() { todo!() }", "unimplemented!(\"later\");", "let x = dbg!(y);"] {
        assert_eq!(tidy::leftovers(&planted("x.rs", bad)).len(), 1, "{bad}");
    }
    assert_eq!(tidy::leftovers(&planted("x.rs", "// todo! is fine here, and \"dbg!\" in a string")), NOTHING);
}

#[test]
fn unsafe_stays_in_the_engine() {
    assert_eq!(faults(tidy::stray_unsafe), NOTHING);
    let bad = "fn f() { unsafe { g() } }";
    assert_eq!(tidy::stray_unsafe(&planted("nbd-server/src/backend/file.rs", bad)).len(), 1);
    assert_eq!(tidy::stray_unsafe(&planted("nbd-server/src/engine/uring.rs", bad)), NOTHING);
    assert_eq!(tidy::stray_unsafe(&planted("x.rs", "#![forbid(unsafe_code)] // unsafe")), NOTHING);
}

#[test]
fn product_code_waits_for_something_instead_of_sleeping() {
    assert_eq!(faults(tidy::stray_sleeps), NOTHING);
    let sources = tidy::workspace();
    for (path, reason) in MAY_SLEEP {
        let sleeps = sources.iter().any(|source| source.path == *path && tidy::sleeps(source));
        assert!(sleeps, "{path} sleeps no more ({reason}): take it off the list");
    }
    for bad in ["use std::thread::sleep;", "std::thread::sleep(d)", "use std::{io, thread::{self, sleep}};"] {
        assert_eq!(tidy::stray_sleeps(&planted("nbd-attach/src/keep.rs", bad)).len(), 1, "{bad}");
        assert_eq!(tidy::stray_sleeps(&planted("vm-tests/src/vm.rs", bad)), NOTHING, "{bad}");
    }
}

#[test]
fn imports_follow_the_table() {
    assert_eq!(faults(tidy::forbidden_imports), NOTHING);
    let bad = [
        ("common/src/uri.rs", "use std::net::TcpStream;"),
        ("common/src/uri.rs", "use std::{fmt, fs::File};"),
        ("common/src/uri.rs", "fn now() { std::time::Instant::now(); }"),
        ("nbd-server/src/session/execute.rs", "use crate::engine::Pool;"),
        ("nbd-server/src/session.rs", "use crate::{buf::IoBuf, engine::Pool};"),
        ("nbd-server/src/session.rs", "use crate::backend;"),
        ("nbd-server/src/layer/window.rs", "let x = crate::session::End::Stopped;"),
        ("nbd-server/src/device.rs", "use tokio::time::sleep;"),
        ("nbd-server/src/durability/group_commit.rs", "use std::time::{Duration, Instant};"),
        ("nbd-server/src/attic.rs", ""),
        ("nbd-attach/src/dial.rs", "use nbd_server::buf;"),
        ("vm-tests/src/vm.rs", "use nbd_attach::attach;"),
        ("tests/tests/disks.rs", "nbd_server::run()"),
    ];
    for (path, text) in bad {
        assert_eq!(tidy::forbidden_imports(&planted(path, text)).len(), 1, "{path}: {text}");
    }
    let good = [
        ("nbd-server/src/worker.rs", "use tokio::time::timeout; use crate::session;"),
        ("nbd-server/src/session.rs", "use crate::session::replies::Replies; use std::time::Duration;"),
        ("nbd-server/src/session.rs", "// crate::backend\n#[cfg(test)]\nmod tests { use crate::backend; }"),
    ];
    for (path, text) in good {
        assert_eq!(tidy::forbidden_imports(&planted(path, text)), NOTHING, "{path}: {text}");
    }
}

#[test]
fn manifests_follow_the_table() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for member in ["common", "recording", "nbd-server", "nbd-attach", "nbd-crash", "tests", "vm-tests"] {
        let manifest = std::fs::read_to_string(root.join(member).join("Cargo.toml")).unwrap();
        assert_eq!(tidy::forbidden_dependencies(member, &manifest), NOTHING);
    }
    for (member, line) in [
        ("common", "tokio.workspace = true"),
        ("tests", "nbd-server = { path = \"../nbd-server\" }"),
        ("vm-tests", "nbd-attach.workspace = true"),
        ("nbd-attach", "nbd-server.workspace = true"),
        ("nbd-server", "nbd-crash.workspace = true"),
        ("recording", "common.workspace = true"),
    ] {
        let manifest = format!("[package]\nname = \"{member}\"\n[dependencies]\n{line}\n");
        assert_eq!(tidy::forbidden_dependencies(member, &manifest).len(), 1, "{member}: {line}");
    }
}

#[test]
fn the_table_has_no_circles() {
    let index = |room: &str| ROOMS.iter().position(|(name, _)| *name == room);
    for (place, (room, uses)) in ROOMS.iter().enumerate() {
        for used in *uses {
            assert!(index(used).is_some_and(|below| below < place), "{room} stands above {used}");
        }
    }
    assert!(RUNTIME_FREE.iter().all(|room| index(room).is_some()));
}
