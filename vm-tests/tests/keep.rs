//! Proves that a device attached with `--keep` outlives its server: killed again and again under a workload that
//! keeps account of what it was promised, on ext4 and xfs, with one connection and with four, no request fails and
//! nothing is lost; and that a server that is back with something else is refused in words.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_tests::promise::Promises;
use vm_tests::{Chance, DISK, Fs, Scene, Signal, Vm, on_both_kernels};

const URI: &str = "nbd+unix:///?socket=/run/kept.sock";
/// What a request that was in flight waits for until it is sent again: the latency of a recovery.
const TIMEOUT: u64 = 2;
const KILLS: usize = 6;
/// Emulation is slow; this ends a hang.
const PATIENCE: Duration = Duration::from_secs(90);

/// Starts a server at the one address, with a place for its epoch: the guest's /tmp has no extended attributes.
fn serve(vm: &mut Vm, name: &str, file: &str) -> Result<()> {
    let server = format!("exec nbd-server --unix /run/kept.sock --state-dir /run/state {file}");
    vm.spawn(name, &server)?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

fn kill(vm: &mut Vm, name: &str) -> Result<()> {
    vm.kill(name, Signal::Kill)?;
    vm.wait_exit(name).map(drop)
}

/// Attaches, in a process that stays; gives the device.
fn attach(vm: &mut Vm, name: &str, connections: usize) -> Result<String> {
    let options = format!("--keep --json --timeout {TIMEOUT} --connections {connections}");
    vm.spawn(name, &format!("exec nbd-attach attach {options} '{URI}'"))?;
    let line = vm.wait_for(name, r#""device":"#)?;
    let device = line.split('"').find(|word| word.starts_with("/dev/nbd"));
    Ok(device.context("the line names no device")?.to_owned())
}

/// Waits until a spawned command has printed so many lines with `text`.
fn lines(vm: &mut Vm, name: &str, text: &str, count: usize) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while vm.log(name).lines().filter(|line| line.contains(text)).count() < count {
        ensure!(Instant::now() < until, "{name} has not said {text:?} {count} times:\n{}", vm.log(name));
        vm.run("usleep 100000")?;
    }
    Ok(())
}

/// Stops the workload, which must not have met an error, and looks whether all that it was promised is there;
/// then detaches, which ends the keeper.
fn end_well(vm: &mut Vm, work: &str, keeper: &str, device: &str, what: &str) -> Result<()> {
    vm.kill(work, Signal::Kill)?;
    vm.wait_exit(work)?;
    ensure!(!vm.log(work).contains("stopped: "), "{what}: a request failed: {}", vm.log(work));
    let mut promises = Promises::default();
    promises.hear(&vm.log(work));
    vm.run(&format!("umount /mnt && mount {device} /mnt"))?;
    vm.verify("/mnt", &promises)?.kept(what)?;
    vm.run(&format!("umount /mnt && nbd-attach detach {device}"))?;
    ensure!(vm.wait_exit(keeper)? == 0, "{what}: {}", vm.log(keeper));
    Ok(())
}

on_both_kernels!(killed_again_and_again, Ext4, Xfs, Ours);
/// No request fails, whatever was in flight.
fn killed_again_and_again(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = scene.vm().boot()?;
    for (fs, connections) in [(Fs::Ext4, 1), (Fs::Xfs, 4)] {
        let what = format!("{fs:?}, {connections} connections, seed {}", chance.seed());
        let (server, keeper, work) =
            (|n: usize| format!("{fs:?}-{n}"), format!("{fs:?}-keeper"), format!("{fs:?}-work"));
        vm.run(&format!("rm -f /tmp/disk; truncate -s {DISK} /tmp/disk"))?;
        serve(&mut vm, &server(0), "/tmp/disk")?;
        let device = attach(&mut vm, &keeper, connections)?;
        vm.make_fs(fs, &device, "/mnt")?;
        vm.promise(&work, "/mnt", 2, chance.draw())?;
        let mut promised = 0;
        for n in 1..=KILLS {
            promised += chance.within(3..12);
            vm.wait_for_promises(&work, promised)?;
            kill(&mut vm, &server(n - 1))?;
            serve(&mut vm, &server(n), "/tmp/disk")?;
            lines(&mut vm, &keeper, r#""event":"reconnected""#, n * connections)?;
            promised = u64::try_from(vm.log(&work).matches(" promised ").count())?;
        }
        vm.wait_for_promises(&work, promised + 5)?;
        end_well(&mut vm, &work, &keeper, &device, &what)?;
        kill(&mut vm, &server(KILLS))?;
    }
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    Ok(())
}

on_both_kernels!(a_server_that_hangs_is_waited_for, Ext4, Ours);
/// It accepts connections and says nothing, for longer than a request may take: the driver gives the old
/// connection up, and what the server still does with that one must not undo what comes over the new one.
fn a_server_that_hangs_is_waited_for(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = scene.vm().boot()?;
    vm.run(&format!("truncate -s {DISK} /tmp/disk"))?;
    serve(&mut vm, "server", "/tmp/disk")?;
    let device = attach(&mut vm, "keeper", 1)?;
    vm.make_fs(Fs::Ext4, &device, "/mnt")?;
    vm.promise("work", "/mnt", 2, chance.draw())?;
    let mut promised = 0;
    for n in 1..=3 {
        promised += chance.within(3..12);
        vm.wait_for_promises("work", promised)?;
        vm.kill("server", Signal::Stop)?;
        lines(&mut vm, "keeper", r#""event":"dead""#, n)?;
        vm.kill("server", Signal::Cont)?;
        lines(&mut vm, "keeper", r#""event":"reconnected""#, n)?;
        promised = u64::try_from(vm.log("work").matches(" promised ").count())?;
    }
    vm.wait_for_promises("work", promised + 5)?;
    end_well(&mut vm, "work", "keeper", &device, &format!("seed {}", chance.seed()))?;
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    Ok(())
}

on_both_kernels!(another_export_is_refused, Ours);
/// A shorter file, an older copy, then the right one, which has grown; and the end while nobody is there.
fn another_export_is_refused(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("mkdir -p /run/state; dd if=/dev/urandom of=/tmp/disk bs=1M count=16 && cp /tmp/disk /tmp/copy")?;
    serve(&mut vm, "first", "/tmp/disk")?;
    let device = attach(&mut vm, "keeper", 1)?;
    vm.run(&format!("dd if=/dev/zero of={device} bs=4k count=1 conv=fsync"))?;
    kill(&mut vm, "first")?;

    vm.run("truncate -s 8M /tmp/short")?;
    for (name, file, words) in [("short", "/tmp/short", "8388608 bytes"), ("copy", "/tmp/copy", "epoch")] {
        serve(&mut vm, name, file)?;
        lines(&mut vm, "keeper", words, 1)?;
        kill(&mut vm, name)?;
    }
    ensure!(!vm.log("keeper").contains("reconnected"), "{}", vm.log("keeper"));

    vm.run("truncate -s 32M /tmp/disk")?;
    serve(&mut vm, "grown", "/tmp/disk")?;
    lines(&mut vm, "keeper", r#""event":"resized","size_bytes":33554432"#, 1)?;
    lines(&mut vm, "keeper", r#""event":"reconnected""#, 1)?;
    let name = device.trim_start_matches("/dev/");
    ensure!(vm.run(&format!("cat /sys/block/{name}/size"))? == "65536");
    vm.run(&format!("cmp {device} /tmp/disk"))?;

    kill(&mut vm, "grown")?;
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
    let device = attach(&mut vm, "keeper", 1)?;
    vm.kill("keeper", Signal::Term)?;
    ensure!(vm.wait_exit("keeper")? == 0, "{}", vm.log("keeper"));
    ensure!(vm.log("keeper").contains("stays attached"), "{}", vm.log("keeper"));
    vm.run(&format!("dd if=/dev/zero of={device} bs=4k count=1 conv=fsync && nbd-attach detach {device}"))?;
    vm.power_off().map(drop)
}
