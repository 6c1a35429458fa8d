//! Proves the harness: that a guest boots on both kernels, that what is said about a command is true, that its
//! deadlines, signals and power cuts work, and that what the other tests take for granted is there.

use std::time::Duration;

use anyhow::{Result, ensure};
use vm_tests::{CommandFailed, Scene, Signal, on_both_kernels};

on_both_kernels!(boots);
fn boots(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    eprintln!("booted in {:?}", vm.boot_time());
    vm.run("dmesg; cat /proc/interrupts /proc/uptime")?;
    let t = std::time::Instant::now();
    for _ in 0..20 { vm.run("true")?; }
    eprintln!("call {:?}", t.elapsed()/20);
    let t = std::time::Instant::now();
    let t = std::time::Instant::now();
    vm.run("modprobe nbd && modprobe xfs && modprobe tls; cat /proc/modules")?;
    eprintln!("modprobe {:?}", t.elapsed());
    vm.power_off()?;
    Ok(())
}
