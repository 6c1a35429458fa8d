//! Proves that attaching and detaching get on with those who do something else at the same time (the ideas of
//! blktests' nbd group), and that a device that had failed works again once its server is back.

use anyhow::{Result, ensure};
use vm_tests::{Fs, Scene, Signal, Vm, on_both_kernels};

const URI: &str = "nbd+unix:///?socket=/run/race.sock";

fn serve(vm: &mut Vm, name: &str) -> Result<()> {
    vm.spawn(name, "exec nbd-server --unix /run/race.sock --state-dir /run/state /tmp/disk")?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

on_both_kernels!(whoever_is_first, Ext4, Ours);
/// The module is unloaded under those who attach; a device is mounted while it is detached. Each time one of the two
/// wins, and the other one is told.
fn whoever_is_first(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server")?;
    vm.spawn("unloader", "while :; do rmmod nbd 2>/dev/null; usleep 300000; done")?;
    let mut attached = 0;
    for round in 1..=10 {
        let tried =
            vm.try_run(&format!("nbd-attach attach '{URI}' --device nbd0 && nbd-attach detach nbd0"))?;
        attached += u32::from(tried.code == 0);
        ensure!(tried.code == 0 || tried.output.contains("modprobe nbd"), "round {round}: {tried:?}");
    }
    vm.kill("unloader", Signal::Kill)?;
    vm.wait_exit("unloader")?;
    println!("attached {attached} times in 10");
    vm.attach(URI, "--device nbd0")?;

    vm.run(&Fs::Ext4.make("/dev/nbd0"))?;
    let (mut mounted, mut detached) = (0, 0);
    for round in 1..=10 {
        let race = "{ usleep $((RANDOM % 150 * 1000)); mount /dev/nbd0 /mnt; } 2>/tmp/mount & mount=$!; \
                    nbd-attach detach nbd0 2>/tmp/detach; detach=$?; wait $mount; echo $? $detach";
        let ends = vm.run(race)?;
        let mut words = || vm.run("cat /tmp/mount /tmp/detach");
        match ends.as_str() {
            "0 4" => mounted += 1,
            "0 0" => anyhow::bail!("round {round}: detached while it was mounted"),
            end if end.ends_with(" 0") => detached += 1,
            end => anyhow::bail!("round {round}: {end}: {}", words()?),
        }
        vm.run(&format!(
            "umount /mnt 2>/dev/null; [ -e /sys/block/nbd0/pid ] || nbd-attach attach '{URI}' --device nbd0 2>&1"
        ))?;
    }
    println!("mounted {mounted} times, detached {detached} times");
    vm.run("nbd-attach detach nbd0")?;

    // Merely open, it is nobody's and yet busy.
    vm.spawn("reader", "exec sh -c 'exec 3</dev/nbd7; echo open; exec sleep 1000'")?;
    vm.wait_for("reader", "open")?;
    let busy = vm.try_run(&format!("nbd-attach attach '{URI}' --device nbd7"))?;
    ensure!(busy.code == 4 && busy.output.contains("some program has it open"), "{busy:?}");
    vm.kill("reader", Signal::Kill)
}

on_both_kernels!(a_device_that_had_failed_works_again, Ours);
/// Its server was away for longer than requests wait.
fn a_device_that_had_failed_works_again(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server-1")?;
    let options = "--keep --json --id data --timeout 2 --dead-connection-timeout 1";
    vm.spawn("keeper", &format!("exec nbd-attach attach {options} '{URI}'"))?;
    vm.wait_for("keeper", r#""event":"kept""#)?;
    vm.kill("server-1", Signal::Kill)?;
    vm.wait_for("keeper", r#""event":"dead""#)?;
    let failed = vm.try_run("dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 conv=fsync")?;
    ensure!(failed.code == 1 && failed.output.contains("Input/output error"), "{failed:?}");
    let status = vm.run("nbd-attach status data")?;
    ensure!(status.contains("0/1") && status.contains("! connection 1"), "{status}");
    serve(&mut vm, "server-2")?;
    vm.wait_for("keeper", r#""event":"reconnected""#)?;
    vm.run("dd if=/dev/urandom of=/dev/nbd0 bs=4k count=1 conv=fsync && cmp /dev/nbd0 /tmp/disk")?;
    vm.run("nbd-attach detach data").map(drop)
}
