//! Drives the real binaries with real clients, process by process.
//!
//! | module | what it is for |
//! |---|---|
//! | [`server`] | starts `nbd-server`, keeps its log, signals it and waits for it |
//! | [`client`] | a raw client that can say anything, also what no decent client would |
//! | [`haggle`] | the negotiation, option by option |
//! | [`chunked`] | a raw client whose replies come in chunks |
//! | [`endpoint`], [`pki`] | where a client connects; certificates for it |
//! | [`disk`] | files to serve, and what became of them |
//! | [`tool`] | finds external tools, runs them with a deadline, and says what was skipped |
//! | [`trace`] | what the server did in which order, as `strace` saw it |
//! | [`crash`] | `nbd-crash`, to its end or as a server |
//! | [`operator`] | `nbd-server ctl` |
//! | [`audit`] | what any server had done before it replied, as a table |
//! | [`probes`] | whether any server keeps the protocol, as a table |
//! | [`mount`] | file systems and loop devices that are taken down again |
//! | [`failing_disk`] | a disk that fails in the kernel, and the promises that are made on it |
//! | [`slow_disk`] | a disk that is slow or hangs, through FUSE |
//! | [`neighbours`] | a good client among neighbours that are in trouble, as a table |
//! | [`model`] | seeded randomness and the memory a disk is compared with |
//! | [`tidy`] | the rules of the house, checked on source text |
//!
//! No product binary is linked: what is tested is what is shipped. The one crate of ours that is
//! used is `common`, the protocol.

pub mod audit;
pub mod chunked;
pub mod client;
pub mod crash;
pub mod disk;
pub mod endpoint;
pub mod failing_disk;
pub mod haggle;
pub mod model;
pub mod mount;
pub mod neighbours;
pub mod operator;
pub mod pki;
pub mod probes;
pub mod server;
pub mod slow_disk;
pub mod tidy;
pub mod tool;
pub mod trace;

use std::thread;
use std::time::Duration;

use vm_tests::Deadline;

/// How long anything may take before a test calls it hung, as [`vm_tests::patience`] counts it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is something to see.
///
/// # Panics
/// When there is nothing within [`PATIENCE`].
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    seen(look).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Looks again and again until there is something to see, or [`PATIENCE`] has run out: for what tells nobody, such as
/// another process's memory and a file that it writes.
pub fn seen<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after(PATIENCE);
    loop {
        let found = look();
        if found.is_some() || deadline.has_passed() {
            return found;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}
