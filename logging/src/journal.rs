//! Whether the journal listens, and how it wants to be told how bad a line is.

use tracing::Level;

/// Tells whether standard error leads to the journal (`JOURNAL_STREAM` in systemd.exec(5)).
pub(crate) fn is_stderr() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let Some((device, inode)) = named.as_deref().and_then(|named| named.split_once(':')) else {
        return false;
    };
    let Ok(found) = rustix::fs::fstat(rustix::stdio::stderr()) else { return false };
    device.parse() == Ok(found.st_dev) && inode.parse() == Ok(found.st_ino)
}

/// The priority, as sd-daemon(3) has it.
pub(crate) fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
