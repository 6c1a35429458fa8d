//! Proves that a server killed in the middle of a workload takes nothing with it that was promised: writes fail
//! loudly, a new server on the same file has every file whose fsync had returned, in every mode: what `unsafe` does not
//! make durable is in the host's kernel, which lives on.

use anyhow::{Result, ensure};
use vm_tests::promise::{Promises, Verdict};
use vm_tests::{Chance, DISK, Fs, HOST_PORT, HostServer, Scene, Signal, Vm, on_both_kernels};

/// Each with a server, a file and a device of its own.
const LIVES: [(&str, &str, Fs); 8] = [
    ("a", "writethrough", Fs::Ext4),
    ("b", "writethrough", Fs::Xfs),
    ("c", "writeback", Fs::Ext4),
    ("d", "writeback", Fs::Xfs),
    ("e", "early-ack", Fs::Ext4),
    ("f", "early-ack", Fs::Xfs),
    ("g", "unsafe", Fs::Ext4),
    ("h", "unsafe", Fs::Xfs),
];
/// What a request without an answer waits for.
const TIMEOUT: &str = "--timeout 2";

on_both_kernels!(sigkill_in_the_guest, Ext4, Xfs, Ours);
/// The servers are in the guest and killed one by one while all work.
fn sigkill_in_the_guest(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = scene.vm().boot()?;
    let (mut devices, mut deaths) = (Vec::new(), Vec::new());
    for (name, mode, fs) in LIVES {
        vm.run(&format!("truncate -s {DISK} /tmp/{name}"))?;
        let uri = vm.serve(name, &format!("--durability {mode} /tmp/{name}"))?;
        let device = vm.attach(&uri, TIMEOUT)?;
        vm.make_fs(fs, &device, &format!("/mnt/{name}"))?;
        vm.promise(&format!("{name}-promise"), &format!("/mnt/{name}"), 1, chance.draw())?;
        devices.push(device);
    }
    for (name, _, _) in LIVES {
        vm.wait_for_promises(&format!("{name}-promise"), chance.within(10..40))?;
        vm.kill(name, Signal::Kill)?;
        vm.wait_exit(name)?;
        deaths.push(vm.uptime()?);
    }
    for (((name, mode, fs), device), died) in LIVES.into_iter().zip(devices).zip(deaths) {
        let (promises, later) = mourn(&mut vm, &format!("{name}-promise"), &device, died)?;
        let uri = vm.serve(&format!("{name}-again"), &format!("--durability {mode} /tmp/{name}"))?;
        vm.attach(&uri, &format!("{TIMEOUT} --device {device}"))?;
        vm.recover(&device, "/mnt", &promises)?.kept(&format!("{fs:?} {mode}, seed {}", chance.seed()))?;
        note(&mut vm, &later)?;
        vm.put_away(fs, &device)?;
    }
    Ok(())
}

/// Waits until a workload has felt the loss of its device, and frees the device. Gives what was promised while the
/// server lived, which it must keep, and what the guest's kernel said to an fsync when no server was there to ask.
fn mourn(vm: &mut Vm, name: &str, device: &str, died: f64) -> Result<(Promises, Promises)> {
    ensure!(vm.wait_exit(name)? == 1, "a workload does not end by itself");
    ensure!(vm.log(name).contains("stopped: "), "it must have been told");
    let promises = Promises::split(&vm.log(name), died);
    vm.run(&format!("umount {device}; nbd-attach detach --force {device}"))?;
    Ok(promises)
}

/// Tells what became of promises that no server had a part in.
fn note(vm: &mut Vm, later: &Promises) -> Result<()> {
    if !later.is_empty() {
        let Verdict { promised, lost } = vm.verify("/mnt", later)?;
        println!("by the guest's kernel alone: {promised} promised, {} lost", lost.len());
    }
    Ok(())
}

on_both_kernels!(sigkill_on_the_host, Ext4, Xfs, Ours);
/// The same with the server on another machine, reached over two connections.
fn sigkill_on_the_host(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let spare = scene.disk("spare", DISK)?.display().to_string();
    let server = HostServer::start(scene, "first", 0, &[&spare])?;
    let port = server.port();
    let mut vm = scene.vm().host_port(port).boot()?;
    server.stop()?;
    let uri = format!("nbd://{HOST_PORT}");
    let options = format!("{TIMEOUT} --connections 2");

    for (mode, fs) in [("writethrough", Fs::Xfs), ("writeback", Fs::Ext4)] {
        let disk = scene.disk(mode, DISK)?.display().to_string();
        let serve = |name: &str| HostServer::start(scene, name, port, &["--durability", mode, &disk]);
        let server = serve(mode)?;
        let device = vm.attach(&uri, &options)?;
        vm.make_fs(fs, &device, "/mnt")?;
        vm.promise(mode, "/mnt", 3, chance.draw())?;
        vm.wait_for_promises(mode, chance.within(20..80))?;
        server.kill()?;
        let died = vm.uptime()?;
        let (promises, later) = mourn(&mut vm, mode, &device, died)?;

        let server = serve(&format!("{mode}-again"))?;
        ensure!(vm.attach(&uri, &options)? == device, "not detached");
        let verdict = vm.recover(&device, "/mnt", &promises)?;
        verdict.kept(&format!("{fs:?} {mode}, seed {}", chance.seed()))?;
        note(&mut vm, &later)?;
        vm.put_away(fs, &device)?;
        server.stop()?;
    }
    Ok(())
}
