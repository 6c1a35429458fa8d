//! Proves that what happens around a keeper does not end it, nor keep it from its work: its log, its terminal, its server's
//! address and certificates, a slow request, another process that keeps the device.

use anyhow::{Context, Result, ensure};
use vm_tests::{PKI, Scene, Signal, Vm, on_both_kernels, on_every_kernel};

const URI: &str = "nbd+unix:///?socket=/run/around.sock";
const READ: &str = "dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2>&1";
const KEEP: &str = "nbd-attach attach --keep --id data --timeout 2";

fn serve(vm: &mut Vm, name: &str) -> Result<()> {
    vm.spawn(name, "exec nbd-server --unix /run/around.sock --state-dir /run/state /tmp/disk")?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

/// Waits until `status` says something.
fn status(vm: &mut Vm, says: &str) -> Result<()> {
    let look = format!("nbd-attach status --json | grep -q '{says}'");
    vm.run(&format!(
        "for i in $(seq 300); do if {look}; then exit 0; fi; usleep 200000; done; nbd-attach status; exit 1"
    ))
    .with_context(|| format!("waiting for {says}"))
    .map(drop)
}

fn kept(vm: &mut Vm) -> Result<()> {
    status(vm, r#""state":"up","connections":."[a-z]*".,"keeper":[0-9]"#)
}

on_both_kernels!(nobody_has_to_listen, Ours);
/// Each way in which a log can fail, and then the server goes away and comes back.
fn nobody_has_to_listen(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk; mkfifo /tmp/full")?;
    serve(&mut vm, "server-0")?;
    // A pipe that is full, and whose reader does not read.
    vm.spawn("deaf", "exec sh -c 'exec 3<>/tmp/full; dd if=/dev/zero of=/tmp/full bs=64k count=1; echo full; exec sleep 1000'")?;
    vm.wait_for("deaf", "full")?;
    let ways = [
        format!("{KEEP} '{URI}' 2>&1 | head -1"),
        format!("{KEEP} --json '{URI}' | head -1"),
        format!("{KEEP} '{URI}' 2>/dev/full"),
        format!("{KEEP} '{URI}' 2>/tmp/full"),
        format!("{KEEP} --json '{URI}' 2>&-"),
    ];
    for (number, way) in (1..).zip(ways) {
        vm.spawn(&format!("keeper-{number}"), &way)?;
        kept(&mut vm).with_context(|| way.clone())?;
        vm.end(&format!("server-{}", number - 1))?;
        status(&mut vm, r#""state":"down""#).with_context(|| way.clone())?;
        serve(&mut vm, &format!("server-{number}"))?;
        kept(&mut vm).with_context(|| way.clone())?;
        vm.run(READ)?;
        vm.run("nbd-attach detach data; while pidof nbd-attach; do usleep 10000; done")
            .with_context(|| way)?;
    }
    // Nor whoever only attaches.
    vm.run(&format!(
        "nbd-attach attach --id data '{URI}' 2>/dev/full && nbd-attach detach data 2>/dev/full"
    ))?;
    vm.run("nbd-attach status --json 2>&- | true").map(drop)
}

on_both_kernels!(a_signal_is_understood, Ours);
/// SIGHUP has it read again, also never if nohup(1) wants that; SIGTERM ends it when the device is not in use.
fn a_signal_is_understood(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server")?;
    vm.spawn("nohup", &format!("trap '' HUP; exec {KEEP} '{URI}'"))?;
    vm.wait_for("nohup", "kept by")?;
    vm.kill("nohup", Signal::Hup)?;
    kept(&mut vm)?;
    vm.kill("nohup", Signal::Int)?;
    ensure!(vm.wait_exit("nohup")? == 11, "{}", vm.log("nohup"));
    status(&mut vm, r#""state":"unkept""#)?;
    let seen = vm.run("su nobody -c 'nbd-attach status'")?;
    ensure!(seen.contains("! SIGINT: stays attached, and nobody reconnects it any more"), "{seen}");

    vm.spawn("keeper", &format!("exec {KEEP} '{URI}'"))?;
    vm.wait_for("keeper", "kept by")?;
    vm.kill("keeper", Signal::Hup)?;
    vm.wait_for("keeper", "SIGHUP: reading certificates")?;
    kept(&mut vm)?;
    vm.spawn("reader", "exec sh -c 'exec 3</dev/nbd0; echo open; exec sleep 1000'")?;
    vm.wait_for("reader", "open")?;
    vm.kill("keeper", Signal::Term)?;
    vm.wait_for("keeper", "still kept, because it is open in sleep")?;
    vm.end("reader")?;
    vm.kill("keeper", Signal::Term)?;
    ensure!(vm.wait_exit("keeper")? == 11, "{}", vm.log("keeper"));

    // Killed, it says nothing; who looks sees it all the same.
    vm.spawn("killed", &format!("exec {KEEP} '{URI}'"))?;
    kept(&mut vm)?;
    vm.end("killed")?;
    vm.end("server")?;
    let seen = vm.run("su nobody -c 'nbd-attach status --json'")?;
    ensure!(seen.contains(r#""state":"unkept","connections":["unknown"],"keeper":null"#), "{seen}");
    vm.run("nbd-attach detach --force data").map(drop)
}

on_both_kernels!(a_server_that_moved_is_found, Ours);
/// Its old address still answers, but has not what is wanted; and of a pair the first one is passive.
fn a_server_that_moved_is_found(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk /tmp/other /tmp/more; cp /etc/hosts /tmp/hosts")?;
    let serve = |vm: &mut Vm, name: &str, address: &str, exports: &str| {
        vm.spawn(
            name,
            &format!("exec nbd-server --listen {address}:10809 --state-dir /run/state {exports}"),
        )?;
        vm.wait_for(name, "nbd://")
    };
    serve(&mut vm, "passive", "127.0.0.2", "other=/tmp/other")?;
    serve(&mut vm, "active", "127.0.0.3", "vm=/tmp/disk")?;
    vm.run("echo 'multi on' >/etc/host.conf; printf '127.0.0.2 store\\n127.0.0.3 store\\n' >>/etc/hosts")?;
    ensure!(vm.run("nbd-attach info nbd://store/vm")?.contains("16 MiB"));
    vm.spawn("keeper", &format!("exec {KEEP} nbd://store/vm"))?;
    kept(&mut vm)?;
    vm.end("active")?;
    serve(&mut vm, "back", "127.0.0.3", "vm=/tmp/disk")?;
    status(&mut vm, r#""reconnects":1"#)?;

    // Another machine has its address, and it another one.
    vm.run("cat /tmp/hosts >/etc/hosts; echo '127.0.0.4 store' >>/etc/hosts")?;
    vm.end("back")?;
    serve(&mut vm, "stranger", "127.0.0.3", "other=/tmp/more")?;
    serve(&mut vm, "moved", "127.0.0.4", "vm=/tmp/disk")?;
    status(&mut vm, r#""reconnects":2"#)?;
    vm.run(READ)?;
    vm.run("nbd-attach detach data")?;
    ensure!(vm.wait_exit("keeper")? == 0, "{}", vm.log("keeper"));
    Ok(())
}

on_both_kernels!(certificates_are_read_again, Ours);
/// All of them are new, the root's as well.
fn certificates_are_read_again(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.make_pki()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    let serve = |vm: &mut Vm, name: &str| {
        let keys = format!("--tls-cert {PKI}/server-cert.pem --tls-key {PKI}/server-key.pem");
        vm.spawn(
            name,
            &format!("exec nbd-server --listen 127.0.0.1:10809 {keys} --state-dir /run/state /tmp/disk"),
        )?;
        vm.wait_for(name, "nbds:")
    };
    serve(&mut vm, "server-1")?;
    vm.spawn("keeper", &format!("exec {KEEP} --tls-certificates {PKI} nbds://localhost"))?;
    kept(&mut vm)?;
    vm.run(&format!("cp -r {PKI} /tmp/old"))?;
    vm.make_pki()?;
    vm.run(&format!("! cmp /tmp/old/ca-cert.pem {PKI}/ca-cert.pem"))?;
    vm.end("server-1")?;
    serve(&mut vm, "server-2")?;
    status(&mut vm, r#""reconnects":1"#)?;
    kept(&mut vm)?;
    // Where they are gone for a moment, those of before have to do.
    vm.run(&format!("mv {PKI} /tmp/away"))?;
    vm.end("server-2")?;
    vm.run(&format!("mkdir {PKI}; cp /tmp/away/server-* {PKI}"))?;
    serve(&mut vm, "server-3")?;
    status(&mut vm, r#""reconnects":2"#)?;
    vm.run(READ)?;
    vm.run("nbd-attach detach data").map(drop)
}

on_both_kernels!(a_slow_request_is_not_cut_for_ever, Nbdkit, Ours);
/// It takes three times as long as the driver waits; the server answers everybody else at once.
fn a_slow_request_is_not_cut_for_ever(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.spawn(
        "server",
        "exec nbdkit --foreground --unix /run/around.sock --filter=delay memory 16M delay-write=6",
    )?;
    vm.run("until [ -S /run/around.sock ]; do usleep 10000; done")?;
    vm.spawn("keeper", &format!("exec {KEEP} --json '{URI}'"))?;
    kept(&mut vm)?;
    ensure!(vm.log("keeper").contains("the server has no epoch"), "{}", vm.log("keeper"));
    vm.run("dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>&1")?;
    vm.wait_for("keeper", r#""event":"slow","seconds":2,"raised":"#)?;
    let timeout = r#""io_timeout_ms":[48]000"#;
    status(&mut vm, timeout)?;
    // And the next one is not cut as often, or not at all.
    vm.run("dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>&1")?;
    let refused = vm.try_run(&format!("nbd-attach attach --require-epoch '{URI}'"))?;
    ensure!(refused.code == 6 && refused.output.contains("--require-epoch asks for"), "{refused:?}");
    vm.run("nbd-attach detach data")?;
    ensure!(vm.wait_exit("keeper")? == 0, "{}", vm.log("keeper"));
    ensure!(!vm.console().contains("I/O error"), "{}", vm.console());
    Ok(())
}

on_both_kernels!(over_several_connections_a_slow_request_is_named, Nbdkit, Ours);
/// It keeps the limit that it began with, and goes from one connection to the other; the limit of later ones is raised once.
fn over_several_connections_a_slow_request_is_named(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    let serve = "exec nbdkit --foreground --unix /run/around.sock";
    let up =
        "until nbd-attach info 'nbd+unix:///?socket=/run/around.sock' >/dev/null 2>&1; do usleep 50000; done";
    vm.spawn("slow", &format!("{serve} --filter=delay memory 16M delay-write=100"))?;
    vm.run(up)?;
    vm.spawn("keeper", &format!("exec {KEEP} --json --connections 2 '{URI}'"))?;
    status(&mut vm, r#""keeper":[0-9]"#)?;
    vm.spawn("work", "exec dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct")?;
    vm.wait_for("keeper", r#""event":"slow","seconds":2,"raised":4"#)?;
    let deaths = |vm: &Vm| vm.log("keeper").matches(r#""event":"dead""#).count();
    let (before, until) = (deaths(&vm), vm.deadline());
    while deaths(&vm) < before + 4 {
        ensure!(!until.has_passed(), "{}", vm.log("keeper"));
        vm.run("usleep 100000")?;
    }
    status(&mut vm, r#""io_timeout_ms":4000"#)?;
    ensure!(vm.log("keeper").matches(r#""event":"slow""#).count() == 1, "{}", vm.log("keeper"));
    // A server that has become quick enough answers it.
    vm.end("slow")?;
    vm.run("rm /run/around.sock")?;
    vm.spawn("quick", &format!("{serve} memory 16M"))?;
    ensure!(vm.wait_exit("work")? == 0, "{}", vm.log("work"));
    vm.run("nbd-attach detach data").map(drop)
}

on_every_kernel!(a_late_answer_of_the_driver_is_an_answer, Ours);
/// The device grows while a request waits for its time: the driver answers only after that.
fn a_late_answer_of_the_driver_is_an_answer(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server-1")?;
    let keep = KEEP.replace("--timeout 2", "--timeout 30");
    vm.spawn("keeper", &format!("exec {keep} --json '{URI}'"))?;
    kept(&mut vm)?;
    vm.kill("server-1", Signal::Stop)?;
    vm.spawn("writer", "exec dd if=/dev/zero of=/dev/nbd0 bs=64k count=1 oflag=direct")?;
    vm.run("until grep -q '[1-9]' /sys/block/nbd0/inflight; do usleep 10000; done")?;
    vm.end("server-1")?;
    vm.run("truncate -s 48M /tmp/disk")?;
    serve(&mut vm, "server-2")?;
    // At once: that it has a connection does not wait for anything.
    vm.wait_for("keeper", r#""event":"reconnected""#)?;
    kept(&mut vm)?;
    ensure!(vm.wait_exit("writer")? == 0, "{}", vm.log("writer"));
    vm.wait_for("keeper", r#""event":"resized","size_bytes":50331648"#)?;
    kept(&mut vm)?;
    ensure!(vm.log("keeper").matches(r#""event":"reconnected""#).count() == 1, "{}", vm.log("keeper"));
    ensure!(!vm.log("keeper").contains("does not take a new connection"), "{}", vm.log("keeper"));
    vm.run("nbd-attach detach data").map(drop)
}

on_both_kernels!(another_disk_of_the_same_size_is_refused, Ext4, Nbdkit, Ours);
/// Its server has no epoch: what lies on the disk has to do, while it is mounted, and only then.
fn another_disk_of_the_same_size_is_refused(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 32M /tmp/a /tmp/b; mkfs.ext4 -q -F /tmp/a; mkfs.ext4 -q -F /tmp/b")?;
    let serve = |vm: &mut Vm, name: &str, file: &str| {
        vm.run("rm -f /run/around.sock")?;
        vm.spawn(name, &format!("exec nbdkit --foreground --unix /run/around.sock file /tmp/{file}"))?;
        vm.run("until [ -S /run/around.sock ]; do usleep 10000; done")
    };
    serve(&mut vm, "first", "a")?;
    vm.spawn("keeper", &format!("exec {KEEP} --growth-interval 1 '{URI}'"))?;
    kept(&mut vm)?;
    vm.run("mount /dev/nbd0 /mnt && seq 1000 >/mnt/file && sync")?;
    vm.wait_for("keeper", "it is known by what it holds: ext ")?;
    vm.end("first")?;
    serve(&mut vm, "other", "b")?;
    vm.wait_for("keeper", "the server serves another disk")?;
    status(&mut vm, r#""reason":"lost-writes""#)?;
    vm.end("other")?;
    serve(&mut vm, "again", "a")?;
    status(&mut vm, r#""reconnects":1"#)?;
    vm.run("echo 3 >/proc/sys/vm/drop_caches; seq 1000 | cmp - /mnt/file && umount /mnt")?;
    // Another file system on the same disk is no other disk.
    vm.run("mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt && echo new >/mnt/file && sync")?;
    vm.end("again")?;
    serve(&mut vm, "last", "a")?;
    status(&mut vm, r#""reconnects":2"#)?;
    vm.run("echo 3 >/proc/sys/vm/drop_caches; grep new /mnt/file && umount /mnt && nbd-attach detach data")?;
    ensure!(!vm.console().contains("I/O error"), "{}", vm.console());
    Ok(())
}
