//! The three ioctls of block devices that have no safe wrapper (`include/uapi/linux/fs.h`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The generated functions; two take a pointer to two 64-bit integers besides the descriptor.
mod raw {
    // _IO(0x12, 119) and _IO(0x12, 127): declared without a size, though they take a pointer.
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
    // _IO(0x12, 97).
    nix::ioctl_none_bad!(blkflsbuf, nix::request_code_none!(0x12, 97));
}

/// BLKFLSBUF: the kernel writes back what it has cached of the device, and forgets it.
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
pub fn flush_buffers(device: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, which takes nothing else.
    unsafe { raw::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

/// BLKDISCARD: the device may forget `len` bytes at `at`; both must be multiples of its sector.
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
pub fn discard(device: &File, at: u64, len: u64) -> io::Result<()> {
    let range = [at, len];
    // SAFETY: the descriptor is open for the whole call, and the kernel reads exactly two u64
    // from the pointer, which `range` outlives.
    unsafe { raw::blkdiscard(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// BLKZEROOUT: `len` bytes at `at` read as zero and stay allocated; both must be multiples of the
/// device's sector.
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
pub fn zero_out(device: &File, at: u64, len: u64) -> io::Result<()> {
    let range = [at, len];
    // SAFETY: as in `discard`.
    unsafe { raw::blkzeroout(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}
