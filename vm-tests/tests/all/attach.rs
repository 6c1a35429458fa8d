//! Proves nbd-attach against the real driver and the servers of others, nbdkit and qemu-nbd: a device appears, is
//! lived on and goes; what cannot be attached leaves nothing behind and says why; what is in use stays; a device
//! that had another server before fits its new one.

use anyhow::{Result, ensure};
use vm_tests::{NOTHING_ATTACHED, Scene, Series, Signal, Vm, on_both_kernels, on_every_kernel};

const SOCKET: &str = "nbd+unix:///?socket=/run/nbd.sock";

/// Starts a server on /run/NAME.sock and waits for it.
fn serve(vm: &mut Vm, name: &str, command: &str) -> Result<()> {
    vm.spawn(name, command)?;
    vm.run(&format!("until [ -S /run/{name}.sock ]; do usleep 10000; done")).map(drop)
}

/// Runs a command that must fail with `code`, say every one of `parts`, and leave no device attached.
fn refused(vm: &mut Vm, command: &str, code: i32, parts: &[&str]) -> Result<()> {
    let finished = vm.try_run(command)?;
    ensure!(
        finished.code == code,
        "`{command}` exited with {} and printed: {}",
        finished.code,
        finished.output
    );
    for part in parts {
        ensure!(finished.output.contains(part), "`{command}` did not say {part:?} but: {}", finished.output);
    }
    nothing_attached(vm)
}

fn nothing_attached(vm: &mut Vm) -> Result<()> {
    let left = vm.run("ls -d /sys/block/nbd*/pid 2>/dev/null || true")?;
    ensure!(left.is_empty(), "something is left: {left}");
    Ok(())
}

on_every_kernel!(a_life, Ext4, Nbdkit, Ours);
/// Attach, look, live on it, be refused while mounted, detach, attach again: the data is there.
fn a_life(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    serve(&mut vm, "nbd", "exec nbdkit --foreground --unix /run/nbd.sock memory 64M")?;
    ensure!(vm.run(&format!("nbd-attach attach '{SOCKET}' 2>/dev/null"))? == "/dev/nbd0");
    ensure!(vm.run("cd /sys/block/nbd0; cat size ro queue/logical_block_size")? == "131072\n0\n512");
    ensure!(vm.run("cd /sys/block/nbd0/queue; cat max_sectors_kb io_timeout")? == "1280\n60000");
    let table = vm.run("nbd-attach status")?;
    let words: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(words[..8] == ["/dev/nbd0", "-", "64", "MiB", "rw", "-", "?/1", "no"], "{table}");
    ensure!(words.last().is_some_and(|uri| uri.starts_with("nbd+unix:///")), "{table}");

    vm.run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && seq 100000 >/mnt/numbers")?;
    let mounted = vm.try_run("nbd-attach detach /dev/nbd0")?;
    ensure!(
        mounted.code == 4 && mounted.output.contains("/dev/nbd0 is in use: mounted on /mnt"),
        "{mounted:?}"
    );
    vm.run("seq 100000 | cmp - /mnt/numbers && umount /mnt")?;
    vm.run("nbd-attach detach nbd0")?;
    nothing_attached(&mut vm)?;
    refused(&mut vm, "nbd-attach detach /dev/nbd0", 3, &["/dev/nbd0 is not attached"])?;
    refused(&mut vm, "nbd-attach status /dev/nbd0", 3, &["/dev/nbd0 is not attached"])?;
    ensure!(vm.run("nbd-attach status --json")? == NOTHING_ATTACHED);

    let json =
        vm.run(&format!("nbd-attach attach '{SOCKET}' --device /dev/nbd3 --read-only --json 2>/dev/null"))?;
    for part in [
        r#""device":"/dev/nbd3","index":3,"size_bytes":67108864"#,
        r#""read_only":true"#,
        r#""connections":1"#,
    ] {
        ensure!(json.contains(part), "{json}");
    }
    vm.run("mount -o ro /dev/nbd3 /mnt && seq 100000 | cmp - /mnt/numbers && umount /mnt")?;
    ensure!(
        vm.try_run("dd if=/dev/zero of=/dev/nbd3 count=1 conv=fsync")?.code != 0,
        "read-only was asked for"
    );
    let unprivileged = vm.run("su nobody -c 'nbd-attach status --json nbd3'")?;
    ensure!(unprivileged.contains(r#""read_only":true,"flags":["#), "{unprivileged}");
    vm.run("nbd-attach detach /dev/nbd3")?;
    vm.power_off().map(drop)
}

on_both_kernels!(refusals, Nbdkit, QemuNbd, Ours);
/// Whatever cannot work is refused in words, and leaves nothing.
fn refusals(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 1M /tmp/disk; truncate -s 1000001 /tmp/odd")?;
    serve(&mut vm, "nbd", "exec nbdkit --foreground --unix /run/nbd.sock file /tmp/odd")?;
    serve(&mut vm, "qemu", "exec qemu-nbd -t -k /run/qemu.sock -f raw -x disk /tmp/disk")?;
    vm.spawn("silent", "sleep 1000 | nc -l -p 7777")?;

    let module = vm.run("find /lib/modules/ -name 'nbd.ko*'")?;
    vm.run(&format!("lsmod | grep -q '^nbd ' && rmmod nbd; mv {module} /tmp/hidden"))?;
    refused(
        &mut vm,
        &format!("nbd-attach attach '{SOCKET}'"),
        9,
        &["nbd module is not loaded", "modprobe nbd"],
    )?;
    ensure!(vm.run("nbd-attach status --json")? == NOTHING_ATTACHED, "looking must not need the module");
    vm.run(&format!("mv /tmp/hidden {module}"))?;
    // Even a system without modprobe has the module.
    vm.run("for dir in $(echo $PATH | tr : ' '); do rm -f $dir/modprobe; done; ! which modprobe")?;
    vm.run(&format!("nbd-attach attach '{SOCKET}' && nbd-attach detach nbd0"))?;
    refused(&mut vm, &format!("su nobody -c \"nbd-attach attach '{SOCKET}'\""), 8, &["needs root"])?;

    let attach = |uri: &str| format!("nbd-attach attach '{uri}'");
    refused(&mut vm, &attach("nbd://127.0.0.1:1/"), 5, &["127.0.0.1:1: connection refused"])?;
    refused(&mut vm, &attach("nbd+unix:///?socket=/run/none"), 5, &["there is no such socket"])?;
    refused(&mut vm, &attach("nbd+unix:///wrong?socket=/run/qemu.sock"), 6, &["no export of that name"])?;
    refused(&mut vm, &attach("nbds://127.0.0.1/"), 2, &["--tls-certificates DIR"])?;
    refused(&mut vm, &attach("nbds+unix:///?socket=/run/nbd.sock"), 2, &["encrypts TCP connections only"])?;
    refused(&mut vm, &attach("nbd+vsock://2/"), 2, &["no vsock"])?;
    refused(&mut vm, &attach("nbd://127.0.0.1:7777/"), 5, &["did not finish the handshake within 10 s"])?;
    let qemu = "nbd-attach attach 'nbd+unix:///disk?socket=/run/qemu.sock'";
    refused(&mut vm, &format!("{qemu} --connections 2"), 6, &["does not allow several connections"])?;
    refused(&mut vm, &format!("{qemu} --device /dev/nbd32767x"), 2, &["say /dev/nbdN"])?;

    let odd = vm.run(&format!("nbd-attach attach '{SOCKET}' --block-size 4096"))?;
    ensure!(odd.contains("its last 577 bytes are out of reach"), "{odd}");
    ensure!(vm.run("blockdev --getsize64 /dev/nbd0")? == "999424");
    let taken = vm.try_run(&format!("nbd-attach attach '{SOCKET}' --device nbd0"))?;
    ensure!(
        taken.code == 10 && taken.output.contains("/dev/nbd0 is attached already (to nbd+unix:"),
        "{taken:?}"
    );
    vm.run("nbd-attach detach /dev/nbd0").map(drop)
}

on_both_kernels!(servers_that_do_not_serve, Nbdkit, Ours);
/// A server that shakes hands and then fails, stalls or vanishes leaves no device, nor does an interrupted attach.
fn servers_that_do_not_serve(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    let nbdkit = |name: &str, rest: &str| format!("exec nbdkit --foreground --unix /run/{name}.sock {rest}");
    serve(
        &mut vm,
        "fails",
        &nbdkit("fails", "--filter=error memory 1M error-pread=EIO error-pread-rate=100%"),
    )?;
    serve(&mut vm, "stalls", &nbdkit("stalls", "--filter=delay memory 1M delay-read=1000"))?;
    let attach = |name: &str| format!("nbd-attach attach 'nbd+unix:///?socket=/run/{name}.sock' --timeout 2");
    refused(&mut vm, &attach("fails"), 6, &["/dev/nbd0 was detached again", "does not serve it"])?;
    refused(&mut vm, &attach("stalls"), 6, &["/dev/nbd0 was detached again", "does not serve it"])?;
    refused(&mut vm, &format!("{} --connections 4", attach("stalls")), 6, &["/dev/nbd0 was detached again"])?;
    let unbounded = "nbd-attach attach 'nbd+unix:///?socket=/run/stalls.sock' --timeout 0";
    refused(&mut vm, unbounded, 6, &["--timeout 0: when the server dies", "no answer within 15 s"])?;

    vm.spawn("attach", &format!("exec {}0", attach("stalls")))?;
    vm.run("until [ -e /sys/block/nbd0/pid ]; do usleep 10000; done")?;
    vm.kill("attach", Signal::Int)?;
    ensure!(vm.wait_exit("attach")? == 1);
    ensure!(
        vm.log("attach").contains("interrupted by SIGINT; nothing stays attached"),
        "{}",
        vm.log("attach")
    );
    nothing_attached(&mut vm)?;
    refused(
        &mut vm,
        &format!("{} >/dev/full", attach("fails").replace("fails", "stalls")),
        6,
        &["detached again"],
    )?;

    serve(&mut vm, "nbd", &nbdkit("nbd", "memory 1M"))?;
    refused(
        &mut vm,
        &format!("nbd-attach attach '{SOCKET}' >/dev/full"),
        1,
        &["its name could not be printed"],
    )?;
    vm.run(&format!("nbd-attach attach '{SOCKET}' && nbd-attach detach /dev/nbd0")).map(drop)
}

on_every_kernel!(detaching, Ext4, Nbdkit, NbdClient, Ours);
/// What is in use or not ours stays without --force; with it, it always goes.
fn detaching(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    let attach = format!("nbd-attach attach '{SOCKET}' --timeout 3");
    serve(&mut vm, "nbd", "exec nbdkit --foreground --unix /run/nbd.sock memory 64M")?;
    vm.run(&format!("{attach} && mkfs.ext4 -q /dev/nbd0"))?;
    // Mounted where only another mount namespace sees it.
    vm.spawn("elsewhere", "exec unshare -m sh -c 'mount /dev/nbd0 /mnt && echo mounted && exec sleep 1000'")?;
    vm.wait_for("elsewhere", "mounted")?;
    let hidden = vm.try_run("nbd-attach detach /dev/nbd0")?;
    ensure!(
        hidden.code == 4 && hidden.output.contains("mounted on /mnt in the mount namespace of"),
        "{hidden:?}"
    );
    vm.kill("elsewhere", Signal::Kill)?;
    vm.run("until nbd-attach detach /dev/nbd0; do usleep 100000; done")?;

    vm.run(&attach)?;
    vm.spawn("reader", "exec sh -c 'exec 3</dev/nbd0; echo open; exec sleep 1000'")?;
    vm.wait_for("reader", "open")?;
    let open = vm.try_run("nbd-attach detach /dev/nbd0")?;
    ensure!(open.code == 4 && open.output.contains("open in sleep (pid "), "{open:?}");
    vm.kill("reader", Signal::Kill)?;
    vm.run("nbd-attach detach /dev/nbd0")?;

    vm.run(&format!("{attach} && mkswap /dev/nbd0 && swapon /dev/nbd0"))?;
    let swap = vm.try_run("nbd-attach detach /dev/nbd0")?;
    ensure!(swap.code == 4 && swap.output.contains("used as swap (/dev/nbd0)"), "{swap:?}");
    vm.run("swapoff /dev/nbd0 && mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt && echo kept >/mnt/file")?;
    let forced = vm.run("nbd-attach detach --force /dev/nbd0")?;
    ensure!(
        forced.contains("mounted on /mnt; forced") && forced.contains("stays until everything"),
        "{forced}"
    );
    vm.try_run("umount /mnt")?;
    vm.run("until [ ! -e /sys/block/nbd0/pid ]; do usleep 10000; done")?;
    vm.run(&format!("{attach} && mount /dev/nbd0 /mnt && grep kept /mnt/file && umount /mnt"))?;

    vm.run("dd if=/dev/zero of=/dev/nbd0 bs=64k count=16")?;
    vm.kill("nbd", Signal::Stop)?;
    vm.run("dd if=/dev/zero of=/dev/nbd0 bs=64k count=16 seek=64 & usleep 300000")?;
    let unflushed = vm.try_run("nbd-attach detach /dev/nbd0")?;
    ensure!(unflushed.code == 5 && unflushed.output.contains("could not be flushed"), "{unflushed:?}");
    vm.run("nbd-attach detach --force /dev/nbd0")?;
    nothing_attached(&mut vm)?;

    vm.kill("nbd", Signal::Kill)?;
    vm.wait_exit("nbd")?;
    vm.run("rm /run/nbd.sock")?;
    serve(&mut vm, "nbd", "exec nbdkit --foreground --unix /run/nbd.sock memory 1M")?;
    vm.run("nbd-client -unix /run/nbd.sock /dev/nbd5")?;
    let foreign = vm.try_run("nbd-attach detach /dev/nbd5")?;
    ensure!(foreign.code == 10 && foreign.output.contains("attached by another tool"), "{foreign:?}");
    vm.run("nbd-attach status | grep '/dev/nbd5  1 MiB'; nbd-attach detach --force /dev/nbd5")?;
    nothing_attached(&mut vm)
}

on_every_kernel!(many_at_once, Nbdkit, Ours);
/// Four connections over TCP carry data; attaches that race for any device or for one all end well or in words.
fn many_at_once(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().cpus(4).boot()?;
    serve(&mut vm, "nbd", "exec nbdkit --foreground --unix /run/nbd.sock memory 16M")?;
    vm.spawn("tcp", "exec nbdkit --foreground -i 127.0.0.1 memory 64M")?;
    vm.run("until nc 127.0.0.1 10809 </dev/null >/dev/null; do usleep 10000; done")?;
    ensure!(
        vm.run("nbd-attach attach nbd://localhost --connections 4 --device nbd0 2>/dev/null")? == "/dev/nbd0"
    );
    ensure!(vm.run("ls -d /sys/block/nbd0/mq/* | wc -l")? == "4");
    vm.run("dd if=/dev/urandom of=/tmp/data bs=1M count=48 2>/dev/null; dd if=/tmp/data of=/dev/nbd0 bs=1M conv=fsync")?;
    vm.run(
        "echo 3 >/proc/sys/vm/drop_caches; head -c 48M /dev/nbd0 | cmp - /tmp/data; nbd-attach detach nbd0",
    )?;

    ensure!(vm.run(&format!("nbd-attach attach '{SOCKET}' --device nbd40 2>/dev/null"))? == "/dev/nbd40");
    vm.run("nbd-attach detach nbd40")?;

    for round in 1..=5 {
        let race = format!("for i in 1 2 3 4 5 6; do nbd-attach attach '{SOCKET}' 2>/tmp/err$i & done; wait");
        let mut won: Vec<String> = vm.run(&race)?.lines().map(str::to_owned).collect();
        won.sort();
        won.dedup();
        ensure!(won.len() == 6, "round {round}: {won:?}, {}", vm.run("cat /tmp/err*")?);
        vm.run("for device in $(nbd-attach status | grep -o '^/dev/nbd[0-9]*'); do nbd-attach detach $device || exit; done")?;
        nothing_attached(&mut vm)?;

        let race = format!(
            "for i in 1 2 3 4; do nbd-attach attach '{SOCKET}' --device nbd9 2>/tmp/err$i & done; wait"
        );
        ensure!(vm.run(&race)? == "/dev/nbd9", "round {round}: exactly one must win");
        ensure!(vm.run("cat /tmp/err* | grep -c 'attached already'")? == "3", "round {round}");
        vm.run("nbd-attach detach nbd9")?;
    }
    Ok(())
}

on_every_kernel!(one_device_after_another, Nbdkit, QemuNbd, Ours);
/// A device that had a more capable server forgets it; partitions are there when attach returns.
fn one_device_after_another(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 8M /tmp/disk")?;
    // One partition: type 83, from sector 2048, 4096 sectors long.
    let entry = r"\0\0\0\0\203\0\0\0\0\010\0\0\0\020\0\0";
    vm.run(&format!("printf '{entry}' | dd of=/tmp/disk bs=1 seek=446 conv=notrunc"))?;
    vm.run(r"printf '\125\252' | dd of=/tmp/disk bs=1 seek=510 conv=notrunc")?;
    serve(&mut vm, "able", "exec qemu-nbd -t -k /run/able.sock -f raw /tmp/disk")?;
    serve(&mut vm, "plain", "exec nbdkit --foreground --unix /run/plain.sock -r memory 4M")?;
    for device in ["", "--device nbd7", "", "--device nbd7"] {
        let attach = |name: &str| {
            format!("nbd-attach -v attach 'nbd+unix:///?socket=/run/{name}.sock' {device} 2>/tmp/err")
        };
        let zeroes = |device: &str| {
            format!("cat /sys/block/{}/queue/write_zeroes_max_bytes", device.replace("/dev/", ""))
        };
        let able = vm.run(&attach("able"))?;
        let capable = vm.run(&zeroes(&able))? != "0";
        ensure!(capable != vm.run("uname -r")?.starts_with("6.1."), "WRITE_ZEROES came with 6.12");
        vm.run(&format!("[ -b {able}p1 ] && [ $(blockdev --getsize64 {able}p1) = 2097152 ]"))?;
        let part = vm.try_run(&format!("nbd-attach detach {able}p1"))?;
        ensure!(part.output.contains(&format!("name the whole device, {able}")), "{part:?}");
        vm.run(&format!("nbd-attach detach {able}"))?;

        let plain = vm.run(&attach("plain"))?;
        ensure!(vm.run(&zeroes(&plain))? == "0", "{plain} believes its old server");
        let renewed = vm.run("cat /tmp/err")?.contains("making it anew");
        // 7.x forgets what the last server could do.
        ensure!(renewed == (scene.series() == Series::V6_12), "{}", vm.run("cat /tmp/err")?);
        ensure!(vm.run(&format!("ls {plain}*"))? == plain, "partitions of the old server");
        vm.run(&format!("nbd-attach detach {plain}"))?;
        ensure!(vm.run("ls -d /sys/block/nbd[0-9]* | wc -l")? == "16", "as many devices as before");
    }
    Ok(())
}
