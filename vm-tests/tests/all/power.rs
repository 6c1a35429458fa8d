//! Proves what each durability mode keeps when the host of the server loses power, with the server in the guest: what
//! it wrote to its virtio disks stays, what it left in the guest's page cache is gone. `writethrough`, `writeback`
//! and `early-ack` keep everything that was promised; `unsafe` is seen to lose it, so this can fail. A server that was
//! asked to end keeps even what nobody flushed.

use anyhow::{Result, ensure};
use vm_tests::promise::Promises;
use vm_tests::{Builder, Chance, DISK, Fs, Scene, Signal, on_both_kernels};

const MODES: [&str; 4] = ["writethrough", "writeback", "early-ack", "unsafe"];

on_both_kernels!(power_loss_under_ext4, Ext4, Ours);
fn power_loss_under_ext4(scene: &Scene) -> Result<()> {
    lose_power(scene, Fs::Ext4)
}

on_both_kernels!(power_loss_under_xfs, Xfs, Ours);
fn power_loss_under_xfs(scene: &Scene) -> Result<()> {
    lose_power(scene, Fs::Xfs)
}

/// Four modes, each with a disk, a server, a device and a workload of its own, lose power at the same moment.
fn lose_power(scene: &Scene, fs: Fs) -> Result<()> {
    let mut chance = Chance::new();
    let disks = MODES.iter().map(|mode| scene.disk(mode, DISK)).collect::<Result<Vec<_>>>()?;
    let machine = || disks.iter().fold(scene.vm(), Builder::disk);

    let mut vm = machine().boot()?;
    vm.stop_writing_back()?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        let uri = vm.serve(mode, &format!("--durability {mode} /dev/vd{disk}"))?;
        let device = vm.attach(&uri, "")?;
        vm.make_fs(fs, &device, &format!("/mnt/{mode}"))?;
    }
    vm.run("sync")?;
    for mode in MODES {
        vm.promise(&format!("{mode}-promise"), &format!("/mnt/{mode}"), 2, chance.draw())?;
    }
    for mode in MODES {
        vm.wait_for_promises(&format!("{mode}-promise"), chance.within(20..60))?;
    }
    let remains = vm.power_cut();

    let mut vm = machine().boot()?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        let mut promises = Promises::default();
        promises.hear(&remains.log(&format!("{mode}-promise")));
        let uri = vm.serve(mode, &format!("--durability {mode} /dev/vd{disk}"))?;
        let device = vm.attach(&uri, "")?;
        let verdict = vm.recover(&device, "/mnt", &promises)?;
        if *mode == "unsafe" {
            println!("{fs:?} unsafe: {} promised, {} lost", verdict.promised, verdict.lost.len());
            ensure!(!verdict.lost.is_empty(), "seed {}: unsafe lost nothing", chance.seed());
        } else {
            verdict.kept(&format!("{fs:?} {mode}, seed {}", chance.seed()))?;
            vm.put_away(fs, &device)?;
        }
    }
    Ok(())
}

on_both_kernels!(power_loss_after_sigterm, Ours);
/// A server that was asked to end has made everything it acknowledged durable, flushed or not.
fn power_loss_after_sigterm(scene: &Scene) -> Result<()> {
    let safe = &MODES[..3];
    let disks = safe.iter().map(|mode| scene.disk(mode, DISK)).collect::<Result<Vec<_>>>()?;
    let machine = || disks.iter().fold(scene.vm(), Builder::disk);

    let mut vm = machine().boot()?;
    vm.stop_writing_back()?;
    for (mode, disk) in safe.iter().zip('a'..) {
        // The kernel writes back what a device has cached when its last user closes it; that must not be the server.
        vm.spawn(&format!("{mode}-holder"), &format!("exec sleep 100000 </dev/vd{disk}"))?;
        let uri = vm.serve(mode, &format!("--durability {mode} --dirty-age 3600 /dev/vd{disk}"))?;
        let device = vm.attach(&uri, "--timeout 5")?;
        vm.run(&format!(
            "promise noise {mode} 5000000 | dd of={device} bs=64k oflag=direct iflag=fullblock"
        ))?;
        ensure!(vm.counters(mode)?.count("flushes")? == 0, "nobody asked for it");
        vm.kill(mode, Signal::Term)?;
        ensure!(vm.wait_exit(mode)? == 0, "{}", vm.log(mode));
    }
    vm.power_cut();

    let mut vm = machine().boot()?;
    for (mode, disk) in safe.iter().zip('a'..) {
        vm.run(&format!("promise noise {mode} 5000000 >/tmp/noise"))?;
        vm.run(&format!("head -c 5000000 /dev/vd{disk} | cmp - /tmp/noise"))?;
    }
    Ok(())
}
