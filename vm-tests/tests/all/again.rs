//! Proves that attaching by an id that exists says what is true: the device answers and is as it was asked for, or there is
//! an exit status and a sentence. What was left half made, forgotten or dead comes back by the same command.

use anyhow::{Context, Result, ensure};
use vm_tests::{Scene, Signal, Vm, on_both_kernels};

const URI: &str = "nbd+unix:///?socket=/run/again.sock";
const READ: &str = "dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2>&1";

fn serve(vm: &mut Vm, name: &str) -> Result<()> {
    vm.spawn(name, "exec nbd-server --unix /run/again.sock --state-dir /run/state /tmp/disk")?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

fn ready(scene: &Scene) -> Result<Vm> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    Ok(vm)
}

fn refused(vm: &mut Vm, command: &str, code: i32, part: &str) -> Result<()> {
    let finished = vm.try_run(command)?;
    ensure!(finished.code == code && finished.output.contains(part), "{command}: {finished:?}");
    Ok(())
}

/// Waits until `status` says something.
fn status(vm: &mut Vm, says: &str) -> Result<()> {
    let look = format!("nbd-attach status --json | grep -q '{says}'");
    vm.run(&format!("for i in $(seq 300); do if {look}; then exit 0; fi; usleep 200000; done; nbd-attach status --json; exit 1"))
        .with_context(|| format!("waiting for {says}"))
        .map(drop)
}

on_both_kernels!(already_means_that_it_works, Ext4, Ours);
fn already_means_that_it_works(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    let attach = format!("nbd-attach attach --id data --timeout 2 '{URI}'");
    serve(&mut vm, "server-1")?;
    ensure!(vm.run(&format!("{attach} 2>/dev/null"))? == "/dev/nbd0");
    refused(&mut vm, &format!("{attach} --read-only"), 10, "is writable")?;
    refused(&mut vm, &format!("{attach} --block-size 4096"), 10, "has blocks of 512 bytes, not 4096")?;

    // Its server is gone, and then it is back: nobody keeps the device.
    vm.end("server-1")?;
    ensure!(vm.try_run(READ)?.code != 0, "a device without a server");
    refused(&mut vm, &attach, 5, "its connection is dead")?;
    serve(&mut vm, "server-2")?;
    let again = vm.run(&attach)?;
    ensure!(again.contains("giving it new connections") && again.contains("/dev/nbd0"), "{again}");
    vm.run(READ)?;

    // Disconnected, and still mounted.
    vm.run("mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt && nbd-attach detach --force data")?;
    refused(
        &mut vm,
        &attach,
        4,
        "is disconnected, and goes when nobody uses it any more: it is mounted on /mnt",
    )?;
    status(&mut vm, r#""state":"disconnected""#)?;
    vm.try_run("umount /mnt")?;
    vm.run("until [ ! -e /sys/block/nbd0/pid ]; do usleep 10000; done")?;
    ensure!(vm.run(&format!("{attach} 2>/dev/null"))? == "/dev/nbd0");
    vm.run(READ)?;
    vm.run("nbd-attach detach data")?;
    let left = vm.run("ls /run/nbd-attach | grep -v '[.]id$' || true")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

on_both_kernels!(what_was_left_half_made_is_finished, Nbdkit, Ours);
/// Killed while it waits for the first block: the same command goes on where that one ended.
fn what_was_left_half_made_is_finished(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    vm.spawn(
        "server",
        "exec nbdkit --foreground --unix /run/again.sock --filter=delay memory 16M delay-read=2",
    )?;
    vm.run("until [ -S /run/again.sock ]; do usleep 10000; done")?;
    for keep in ["", "--keep"] {
        let attach = format!("exec nbd-attach attach {keep} --id half '{URI}'");
        vm.spawn("killed", &attach)?;
        vm.run("until [ -e /sys/block/nbd0/pid ]; do usleep 1000; done")?;
        vm.end("killed")?;
        status(&mut vm, r#""state":"half-made""#)?;
        vm.spawn("again", &attach)?;
        vm.wait_for("again", "/dev/nbd0 is ")?;
        if keep.is_empty() {
            ensure!(vm.wait_exit("again")? == 0, "{}", vm.log("again"));
        } else {
            vm.wait_for("again", "kept by")?;
        }
        status(&mut vm, r#""state":"up""#)?;
        ensure!(vm.run("cat /sys/block/nbd0/queue/max_sectors_kb")? == "1280");
        vm.run("nbd-attach detach half")?;
    }
    ensure!(vm.wait_exit("again")? == 0, "{}", vm.log("again"));
    Ok(())
}

on_both_kernels!(a_lost_record_is_made_again, Ours);
/// By the command that attached it, and by `keep`; a place that cannot be written to keeps nobody from keeping.
fn a_lost_record_is_made_again(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    serve(&mut vm, "server-0")?;
    let attach = format!("exec nbd-attach attach --keep --id data --timeout 2 '{URI}'");
    vm.spawn("first", &attach)?;
    vm.wait_for("first", "kept by")?;
    for (number, again) in [(1, attach.as_str()), (2, "exec nbd-attach keep data")] {
        vm.run("rm -r /run/nbd-attach; kill -9 $(pidof nbd-attach); while pidof nbd-attach; do usleep 10000; done")?;
        let name = format!("again-{number}");
        vm.spawn(&name, again)?;
        vm.wait_for(&name, "kept by")?;
        vm.end(&format!("server-{}", number - 1))?;
        serve(&mut vm, &format!("server-{number}"))?;
        status(&mut vm, r#""connections":."alive".,"keeper":[0-9]"#)?;
        vm.run(READ)?;
    }
    vm.run("nbd-attach detach data")?;
    ensure!(vm.wait_exit("again-2")? == 0, "{}", vm.log("again-2"));

    // Nothing can be remembered.
    vm.run("rm -rf /run/nbd-attach; mkdir /run/nbd-attach; mount -t tmpfs -o ro none /run/nbd-attach")?;
    vm.spawn("unremembered", &attach)?;
    vm.wait_for("unremembered", "kept by")?;
    ensure!(vm.log("unremembered").contains("will not be remembered: cannot use /run/nbd-attach"));
    vm.end("server-2")?;
    serve(&mut vm, "server-3")?;
    vm.wait_for("unremembered", "is back after")?;
    vm.run(READ)?;
    vm.run("nbd-attach detach data")?;
    ensure!(vm.wait_exit("unremembered")? == 0, "{}", vm.log("unremembered"));
    vm.run("umount /run/nbd-attach")?;

    // A keeper of an earlier attachment that hangs keeps nobody from the next.
    vm.spawn("hanging", &attach)?;
    vm.wait_for("hanging", "kept by")?;
    vm.kill("hanging", Signal::Stop)?;
    vm.run("nbd-attach detach data")?;
    vm.spawn("next", &attach)?;
    vm.wait_for("next", "kept by")?;
    vm.run("nbd-attach detach data")?;
    ensure!(vm.wait_exit("next")? == 0, "{}", vm.log("next"));
    vm.kill("hanging", Signal::Kill)
}

on_both_kernels!(a_device_is_ready_when_the_command_returns, Ours);
/// In the background, after waiting for its server; and detached by what was attached, or all of them.
fn a_device_is_ready_when_the_command_returns(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    vm.spawn("waiting", &format!("exec nbd-attach attach --wait=100 --id late '{URI}'"))?;
    vm.wait_for("waiting", "waiting for the server")?;
    serve(&mut vm, "server-1")?;
    ensure!(vm.wait_exit("waiting")? == 0, "{}", vm.log("waiting"));
    let forever = "--dead-connection-timeout infinity";
    let attach = format!("nbd-attach attach --keep --background --timeout 2 {forever} --id data '{URI}'");
    // Whoever reads its output gets to the end of it.
    ensure!(vm.run(&format!("device=$({attach} 2>/tmp/err | cat); echo $device"))? == "/dev/nbd1");
    status(&mut vm, r#""connections":."alive".,"keeper":[0-9]"#)?;
    vm.end("server-1")?;
    serve(&mut vm, "server-2")?;
    status(&mut vm, r#""keeper":[0-9]*,"reconnects":1"#)?;
    vm.run("dd if=/dev/nbd1 of=/dev/null bs=4k count=1 iflag=direct 2>&1")?;
    ensure!(vm.run(&format!("{attach} 2>&1"))?.contains("is kept by another process already"));
    refused(
        &mut vm,
        &attach.replace("--id data", "--id nowhere").replace("again", "nowhere"),
        5,
        "no such socket",
    )?;

    refused(&mut vm, &format!("nbd-attach detach '{URI}'"), 3, "is not attached, or more than once")?;
    vm.spawn("reader", "exec sh -c 'exec 3</dev/nbd0; echo open; exec sleep 1000'")?;
    vm.wait_for("reader", "open")?;
    // One that stays keeps no other.
    refused(&mut vm, "nbd-attach detach --all", 4, "open in sleep")?;
    ensure!(vm.run("ls -d /sys/block/nbd*/pid")? == "/sys/block/nbd0/pid");
    vm.end("reader")?;
    // Nobody kept it while its server was away.
    vm.run(&format!("nbd-attach attach --id late '{URI}' && nbd-attach detach '{URI}'"))?;
    vm.run("nbd-attach detach --all && [ -z \"$(pidof nbd-attach)\" ]").map(drop)
}
