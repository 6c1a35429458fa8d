//! A mark on an inode that lives exactly as long as the kernel keeps the inode in memory.
//!
//! A failed write-back that nobody was told of is remembered with the inode in memory, and forgotten with
//! it: at an unmount, or when the kernel drops the inode. The write-life hint of an inode is remembered
//! in the same way (`i_write_hint`, `fs/fcntl.c`), survives the process that has set it, and is not
//! stored. Its value "none" means the same to every file system as that no hint was ever set, so it can
//! serve as a mark.
//!
//! A server sets it when it starts, and removes it in the very thread in which a sync has failed: whoever
//! starts after a server that was killed there finds no mark, and knows that data may be lost.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc;

/// `F_GET_RW_HINT` and `F_SET_RW_HINT` (`include/uapi/linux/fcntl.h`).
const GET_HINT: libc::c_int = 1024 + 11;
const SET_HINT: libc::c_int = 1024 + 12;
/// `RWH_WRITE_LIFE_NOT_SET` and `RWH_WRITE_LIFE_NONE`.
const NOT_SET: u64 = 0;
const NONE: u64 = 1;

/// Marks the file's inode; returns whether it is marked, which takes its owner or `CAP_FOWNER`.
pub fn set(file: &File) -> bool {
    let mut hint = NONE;
    hint_of(file, SET_HINT, &mut hint) && is_set(file)
}

/// Removes the mark, if there is one.
pub fn clear(file: &File) {
    let mut hint = NOT_SET;
    hint_of(file, SET_HINT, &mut hint);
}

/// Whether the inode is marked.
#[must_use]
pub fn is_set(file: &File) -> bool {
    let mut hint = 0;
    hint_of(file, GET_HINT, &mut hint) && hint == NONE
}

#[expect(unsafe_code, reason = "the fcntl has no safe wrapper")]
fn hint_of(file: &File, command: libc::c_int, hint: &mut u64) -> bool {
    // SAFETY: the descriptor is open for the whole call, and the kernel reads or writes exactly the u64
    // that the pointer leads to, which outlives the call.
    unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(hint)) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_outlives_its_descriptors_and_says_nothing_of_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "kept in the cache").unwrap();
        if !set(&File::open(&path).unwrap()) {
            return eprintln!("this file system takes no hints");
        }
        assert!(is_set(&File::open(&path).unwrap()));
        clear(&File::open(&path).unwrap());
        assert!(!is_set(&File::open(&path).unwrap()));
        std::fs::write(dir.path().join("b"), "").unwrap();
        assert!(!is_set(&File::open(dir.path().join("b")).unwrap()));
    }
}
