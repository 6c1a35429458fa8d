//! What can be one way or another.

/// What becomes of a device when its server goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It fails.
    No,
    /// It is given new connections.
    Reconnect,
}

/// What to do about a server that cannot tell when it has lost acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epoch {
    /// Say so.
    Optional,
    /// Refuse it.
    Required,
}

/// Whether the device shall be writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writable when the server allows it.
    AsOffered,
    /// Never.
    ReadOnly,
}

/// For whom the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A path or a table.
    Human,
    /// For programs.
    Json,
}

/// What detaching does when something speaks against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insistence {
    /// Say so and leave the device attached.
    Refuse,
    /// Say so and detach all the same.
    Force,
}

/// What detaching does about file systems that are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// They are a use like any other.
    Leave,
    /// They are unmounted first, unless they are busy.
    Unmount,
}
