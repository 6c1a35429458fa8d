//! Proves, cell by cell, what the epoch and the first FLUSH of a server say of what became of the storage since the
//! server before it: an orderly restart and a killed server on a disk that works lose nothing and keep the epoch; what
//! may have lost data, or is not the same storage, gets another one. A start never fails for it.
//!
//! Each line of the table is a kind of storage, each column a durability mode, each cell a test. What happens is in
//! `happenings.rs`, with what it happens to in `scene.rs`.

mod happenings;
mod scene;

use common::proto::WireError;
use tests::client::{FUA, PLAIN};
use tests::mount;

use scene::{BLOCK, Run, Scene, Storage};

/// What the second server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// The epoch of the first one. FLUSH succeeds.
    Kept,
    /// Another epoch. FLUSH succeeds.
    New,
    /// Another epoch, told at the first start. The kernel may tell the loss once more, to a FLUSH.
    Lost,
    /// Another epoch than before the loss, and every FLUSH and write fails until the operator clears the poison.
    Poisoned,
    /// FLUSH succeeds. Nothing was lost, and nothing proves it to the server: either epoch is right.
    Either,
}

/// Cells of one happening: what becomes of each kind of storage in writethrough, writeback and early-ack.
macro_rules! table {
    ($($happening:ident { $($storage:ident: $writethrough:ident $writeback:ident $early_ack:ident;)* })*) => {
        $(mod $happening { $(mod $storage {
            use crate::{Says, check, happenings, scene};

            fn cell(mode: &str, says: Says) {
                let name = concat!(stringify!($happening), " ", stringify!($storage));
                check(name, scene::Storage::$storage, mode, happenings::$happening, says);
            }

            #[test]
            fn writethrough() {
                cell("writethrough", Says::$writethrough);
            }

            #[test]
            fn writeback() {
                cell("writeback", Says::$writeback);
            }

            #[test]
            fn early_ack() {
                cell("early-ack", Says::$early_ack);
            }
        })* })*
    };
}

table! {
    // happening { storage: writethrough writeback early_ack }
    stopped {
        file: Kept Kept Kept;
        file_without_attributes: Kept Kept Kept;
        device: Kept Kept Kept;
    }
    killed {
        file: Kept Kept New;
        file_without_attributes: Kept Kept New;
        device: Kept Kept New;
    }
    // Early-ack may take its time to put on record that it holds nothing any more.
    killed_after_flush {
        file: Kept Kept Either;
        file_without_attributes: Kept Kept Either;
        device: Kept Kept Either;
    }
    // The write that is lost is refused in writethrough, which poisons.
    killed_and_write_back_fails {
        failing_file: Poisoned Lost Lost;
        failing_device: Poisoned Lost Lost;
    }
    killed_and_write_back_fails_at_unmount {
        failing_file: Poisoned Lost Lost;
        failing_device: Poisoned Lost Lost;
    }
    power_cut {
        file: Either New New;
        device: Either New New;
    }
    stopped_and_remounted {
        file: Kept Kept Kept;
        // Nothing tells a device that was set up again from another one.
        device: Either Either Either;
    }
    killed_and_remounted {
        file: Either New New;
        device: Either New New;
    }
    restored_in_place {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    rolled_back {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    copied {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    replaced {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    truncated {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    edited {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    record_lost {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    record_is_garbage {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    record_is_cut_short {
        file: New New New;
        file_without_attributes: New New New;
        device: New New New;
    }
    poisoned_and_killed {
        failing_file: Poisoned Poisoned Poisoned;
        failing_device: Poisoned Poisoned Poisoned;
    }
    poisoned_and_stopped {
        failing_file: Poisoned Poisoned Poisoned;
        failing_device: Poisoned Poisoned Poisoned;
    }
}

/// What happens between two servers.
type Happening = fn(&mut Scene, Run) -> anyhow::Result<()>;

/// A server acknowledges a write, something happens, and the next server is asked.
fn check(name: &str, storage: Storage, mode: &str, happening: Happening, says: Says) {
    if !mount::can_mount() {
        return;
    }
    let mut scene = Scene::new(storage, mode).expect("storage can be made");
    let mut first = scene.start();
    let before = first.epoch();
    let answer = first.client.write(PLAIN, scene.target(), &[1; BLOCK]);
    let is_refused = storage.fails() && mode == "writethrough";
    assert_eq!(answer == WireError::OK, !is_refused, "the write before: {answer:?}");
    happening(&mut scene, first).expect("it can be made to happen");

    // A start that needs a second try has swallowed what the first one was told.
    let mut second = scene.start();
    let after = second.epoch();
    let is_kept = after == before;
    match says {
        Says::Kept => assert!(is_kept, "{name} {mode}: nothing was lost, and the epoch is another one"),
        Says::New | Says::Lost | Says::Poisoned => {
            assert!(!is_kept, "{name} {mode}: data may be lost, and the epoch is the same");
        }
        Says::Either => {}
    }
    let flushed = second.client.flush();
    match says {
        Says::Kept | Says::New | Says::Either => assert_eq!(flushed, WireError::OK, "{name} {mode}: FLUSH"),
        Says::Lost => {}
        Says::Poisoned => {
            assert_eq!(flushed, WireError::EIO, "{name} {mode}: FLUSH of what is poisoned");
            assert_ne!(second.client.write(FUA, 0, &[3; BLOCK]), WireError::OK, "{name} {mode}: a write");
            second.operator.order(&["clear-poison"]);
            assert_eq!(second.client.flush(), WireError::OK, "{name} {mode}: FLUSH after clear-poison");
        }
    }
    if says != Says::Lost {
        assert_eq!(second.client.write(FUA, 0, &[3; BLOCK]), WireError::OK, "{name} {mode}: a write");
        assert_eq!(scene.head(), [3; BLOCK], "{name} {mode}: it goes to what is at the path now");
        let again = second.epoch();
        assert!(says == Says::Poisoned || again == after, "{name} {mode}: nothing more was lost");
    }
}
