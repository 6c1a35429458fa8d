//! Proves what each durability mode keeps when the host of the server loses power, with the server in the guest: what
//! it wrote to its virtio disks stays, what it left in the guest's page cache is gone. `writethrough`, `writeback`
//! and `early-ack` keep everything that was promised; `unsafe` is seen to lose it, so this can fail.

use anyhow::{Result, ensure};
use vm_tests::promise::{Promises, Verdict};
use vm_tests::{Builder, Chance, Fs, Scene, Vm, on_both_kernels};

const MODES: [&str; 4] = ["writethrough", "writeback", "early-ack", "unsafe"];
/// Nothing reaches a disk unless somebody asks for it: the kernel's own habit would hide what a server forgets.
const NO_HABITS: &str = "cd /proc/sys/vm; echo 95 >dirty_ratio; echo 90 >dirty_background_ratio; \
                         echo 0 >dirty_writeback_centisecs";

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
    let disks = MODES.iter().map(|mode| scene.disk(mode, fs.size())).collect::<Result<Vec<_>>>()?;
    let machine = || disks.iter().fold(scene.vm(), Builder::disk);

    let mut vm = machine().boot()?;
    vm.run(NO_HABITS)?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        let uri = vm.serve(mode, &format!("--durability {mode} /dev/vd{disk}"))?;
        let device = vm.attach(&uri, "")?;
        vm.make_fs(fs, &device, &format!("/mnt/{mode}"))?;
    }
    vm.run("sync")?;
    for mode in MODES {
        vm.promise(&format!("{mode}-promise"), &format!("/mnt/{mode}"), 2, chance.next())?;
    }
    for mode in MODES {
        vm.wait_for_promises(&format!("{mode}-promise"), chance.within(20..60))?;
    }
    let remains = vm.power_cut();

    let mut vm = machine().boot()?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        let mut promises = Promises::default();
        promises.hear(&remains.log(&format!("{mode}-promise")));
        let verdict = judge(&mut vm, fs, mode, disk, &promises)?;
        println!("{fs:?} {mode}: {} promised, {} lost", verdict.promised, verdict.lost.len());
        let lost = verdict.lost.join("\n");
        ensure!((*mode == "unsafe") != lost.is_empty(), "seed {}: {mode} lost:\n{lost}", chance.seed());
    }
    Ok(())
}

/// Serves what is left, mounts it and looks.
fn judge(vm: &mut Vm, fs: Fs, mode: &str, disk: char, promises: &Promises) -> Result<Verdict> {
    let uri = vm.serve(mode, &format!("--durability {mode} /dev/vd{disk}"))?;
    let device = vm.attach(&uri, "")?;
    let mounted = vm.try_run(&format!("mount {device} /mnt"))?;
    if mounted.code != 0 {
        return Ok(Verdict { promised: promises.len(), lost: vec![mounted.output] });
    }
    let verdict = vm.verify("/mnt", promises)?;
    vm.run("umount /mnt")?;
    if verdict.lost.is_empty() {
        vm.run(&fs.check(&device))?;
    }
    vm.run(&format!("nbd-attach detach {device}"))?;
    Ok(verdict)
}
