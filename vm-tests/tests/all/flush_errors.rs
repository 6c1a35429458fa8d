//! Proves what a file system does when its FLUSH fails, in every mode that flushes: it stops, loudly, as on a failing
//! disk, and goes on refusing although the disk is well again. Once the operator has cleared the poison it can be
//! mounted again and has what was promised before.

use anyhow::{Result, ensure};
use vm_tests::{DISK, Fs, Scene, Signal, Vm, on_both_kernels};

const MODES: [&str; 3] = ["writethrough", "writeback", "early-ack"];
/// Makes every sync of a running server fail.
const SABOTAGE: &str =
    "strace -f -o /dev/null -e trace=fdatasync,pwritev2 -e inject=fdatasync,pwritev2:error=EIO";

on_both_kernels!(ext4_stops_when_a_flush_fails, Ext4, Strace, Ours);
fn ext4_stops_when_a_flush_fails(scene: &Scene) -> Result<()> {
    fail_flushes(
        scene,
        Fs::Ext4,
        &["Aborting journal", "Detected aborted journal", "Remounting filesystem read-only"],
    )
}

on_both_kernels!(xfs_stops_when_a_flush_fails, Xfs, Strace, Ours);
fn xfs_stops_when_a_flush_fails(scene: &Scene) -> Result<()> {
    fail_flushes(scene, Fs::Xfs, &["hutting down filesystem", "has been shut down"])
}

/// `words` are those by which the file system tells that it stops.
fn fail_flushes(scene: &Scene, fs: Fs, words: &[&str]) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    for mode in MODES {
        vm.run(&format!("truncate -s {DISK} /tmp/{mode}"))?;
        let uri = vm.serve(mode, &format!("--admin /run/{mode}.admin --durability {mode} /tmp/{mode}"))?;
        let device = vm.attach(&uri, "")?;
        vm.make_fs(fs, &device, "/mnt")?;
        vm.run("promise noise kept 100000 >/mnt/kept && sync /mnt/kept")?;
        let told_before = vm.console().len();

        vm.spawn(&format!("{mode}-saboteur"), &format!("exec {SABOTAGE} -p $(cat /run/spawn/{mode}.pid)"))?;
        vm.wait_for(&format!("{mode}-saboteur"), "attached")?;
        ensure!(!writes(&mut vm, "/mnt/lost")?, "{fs:?} {mode}: an fsync succeeds while every sync fails");
        vm.kill(&format!("{mode}-saboteur"), Signal::Term)?;
        vm.wait_exit(&format!("{mode}-saboteur"))?;

        // The disk works again; neither the server nor the file system may pretend that nothing happened.
        ensure!(!writes(&mut vm, "/mnt/later")?, "{fs:?} {mode}: an fsync succeeds after one that failed");
        // Where each write is durable by itself, data fails first, and that fails its fsync alone: metadata tells.
        vm.try_run("touch /mnt/metadata; sync -f /mnt")?;
        let told = vm.console()[told_before..].to_owned();
        ensure!(words.iter().any(|word| told.contains(word)), "{fs:?} {mode} is silent:\n{told}");
        let ctl = format!("nbd-server ctl --admin /run/{mode}.admin");
        ensure!(vm.run(&format!("{ctl} list"))?.contains("POISONED"), "{mode}");

        vm.run(&format!("umount /mnt; {ctl} clear-poison && mount {device} /mnt"))?;
        vm.run("promise noise kept 100000 | cmp - /mnt/kept")?;
        ensure!(writes(&mut vm, "/mnt/after")?, "{fs:?} {mode}: it does not work after all is cleared");
        vm.put_away(fs, &device)?;
        vm.kill(mode, Signal::Term)?;
        ensure!(vm.wait_exit(mode)? == 0, "{}", vm.log(mode));
    }
    Ok(())
}

/// Whether a file can be written and made durable.
fn writes(vm: &mut Vm, file: &str) -> Result<bool> {
    Ok(vm.try_run(&format!("dd if=/dev/zero of={file} bs=4k count=4 conv=fsync"))?.code == 0)
}
