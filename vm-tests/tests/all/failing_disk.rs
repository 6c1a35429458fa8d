//! Proves, on the kernels of the guests, that what is answered as durable is on the medium of a disk that fails: those of
//! a full tmpfs, and those whose writes device mapper refuses, under the served file or as the served device. The judge
//! is the one of `cargo xtask failing-disk`.

use std::time::Duration;

use anyhow::{Result, ensure};
use vm_tests::{Scene, on_both_kernels};

/// Kinds of storage, as the judge calls them.
const STORAGES: [&str; 4] = ["file", "file on dm-error", "file on dm-flakey", "dm-error"];
/// For each mode: enough to come to each plan with one connection and with sixteen.
const ROUNDS: u32 = 16;
/// For one kind of storage, many times what it takes.
const LIMIT: Duration = Duration::from_secs(600);

on_both_kernels!(promises_are_kept_on_failing_disks, Ext4, Losetup, Dmsetup, Ours);
fn promises_are_kept_on_failing_disks(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().module("dm_mod").module("dm_flakey").module("ext4").boot()?;
    vm.run("modprobe loop && modprobe dm_mod && modprobe dm_flakey")?;
    let judge = format!("NBD_SERVER_BIN=/usr/bin/nbd-server failing-disk --rounds {ROUNDS}");
    let mut faults = Vec::new();
    for storage in STORAGES {
        let told = vm.try_run_within(LIMIT, &format!("{judge} '--storage={storage}'"))?;
        println!("{}", told.output);
        if told.code != 0 {
            faults.push(told.output);
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
