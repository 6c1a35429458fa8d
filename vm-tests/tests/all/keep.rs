//! Proves that a server that is back with something else is refused in words, and that a keeper leaves a device as it
//! is. What a kept device comes through is in `storm.rs`.

use anyhow::{Context, Result, ensure};
use vm_tests::{Scene, Signal, Vm, on_both_kernels, on_every_kernel};

const URI: &str = "nbd+unix:///?socket=/run/kept.sock";
/// What a request that was in flight waits for until it is sent again: the latency of a recovery.
const TIMEOUT: u64 = 2;

/// Starts a server at the one address, with a place for its epoch: the guest's /tmp has no extended attributes.
fn serve(vm: &mut Vm, name: &str, file: &str) -> Result<()> {
    let server = format!("exec nbd-server --unix /run/kept.sock --state-dir /run/state {file}");
    vm.spawn(name, &server)?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

/// Attaches, in a process that stays; gives the device.
fn attach(vm: &mut Vm, name: &str) -> Result<String> {
    let options = format!("--keep --json --timeout {TIMEOUT}");
    vm.spawn(name, &format!("exec nbd-attach attach {options} '{URI}'"))?;
    let line = vm.wait_for(name, r#""device":"#)?;
    let device = line.split('"').find(|word| word.starts_with("/dev/nbd"));
    Ok(device.context("the line names no device")?.to_owned())
}

/// Waits until a spawned command has printed so many lines with `text`.
fn lines(vm: &mut Vm, name: &str, text: &str, count: usize) -> Result<()> {
    let until = vm.deadline();
    while vm.log(name).lines().filter(|line| line.contains(text)).count() < count {
        ensure!(!until.has_passed(), "{name} has not said {text:?} {count} times:\n{}", vm.log(name));
        vm.run("usleep 100000")?;
    }
    Ok(())
}

on_every_kernel!(another_export_is_refused, Ours);
/// A shorter file, an older copy, then the right one, which has grown; and the end while nobody is there.
fn another_export_is_refused(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("mkdir -p /run/state; dd if=/dev/urandom of=/tmp/disk bs=1M count=16 && cp /tmp/disk /tmp/copy")?;
    serve(&mut vm, "first", "/tmp/disk")?;
    let device = attach(&mut vm, "keeper")?;
    vm.run(&format!("dd if=/dev/zero of={device} bs=4k count=1 conv=fsync"))?;
    vm.end("first")?;

    vm.run("truncate -s 8M /tmp/short")?;
    for (name, file, words) in [("short", "/tmp/short", "8388608 bytes"), ("copy", "/tmp/copy", "epoch")] {
        serve(&mut vm, name, file)?;
        lines(&mut vm, "keeper", words, 1)?;
        vm.end(name)?;
    }
    ensure!(!vm.log("keeper").contains("reconnected"), "{}", vm.log("keeper"));

    vm.run("truncate -s 32M /tmp/disk")?;
    serve(&mut vm, "grown", "/tmp/disk")?;
    lines(&mut vm, "keeper", r#""event":"resized","size_bytes":33554432"#, 1)?;
    lines(&mut vm, "keeper", r#""event":"reconnected""#, 1)?;
    let name = device.trim_start_matches("/dev/");
    ensure!(vm.run(&format!("cat /sys/block/{name}/size"))? == "65536");
    vm.run(&format!("cmp {device} /tmp/disk"))?;

    vm.end("grown")?;
    lines(&mut vm, "keeper", r#""event":"dead""#, 2)?;
    vm.run(&format!("nbd-attach detach --force {device}"))?;
    ensure!(vm.wait_exit("keeper")? == 0, "{}", vm.log("keeper"));
    vm.power_off().map(drop)
}

on_both_kernels!(a_keeper_that_is_told_to_end_leaves_the_device, Ours);
/// What is in the kernel's hands stays there.
fn a_keeper_that_is_told_to_end_leaves_the_device(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server", "/tmp/disk")?;
    let device = attach(&mut vm, "keeper")?;
    vm.kill("keeper", Signal::Term)?;
    ensure!(vm.wait_exit("keeper")? == 11, "{}", vm.log("keeper"));
    ensure!(vm.log("keeper").contains("stays attached"), "{}", vm.log("keeper"));
    vm.run(&format!("dd if=/dev/zero of={device} bs=4k count=1 conv=fsync && nbd-attach detach {device}"))?;
    vm.power_off().map(drop)
}
