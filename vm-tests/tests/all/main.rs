//! Everything that takes a machine: one program, so that no processor idles while one file's last test ends.

mod again;
mod attach;
mod contract;
mod crash;
mod cuts;
mod encrypted;
mod failing_disk;
mod filesystems;
mod flush_errors;
mod flushes;
mod harness;
mod in_use;
mod keep;
mod kill_points;
mod kills;
mod life_cycle;
mod package;
mod peers;
mod power;
mod races;
mod storm;
mod surroundings;
mod vsock;
mod write_cache;
