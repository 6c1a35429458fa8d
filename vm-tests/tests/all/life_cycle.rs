//! Proves that a device is found again: by its id, by a keeper that was started anew, by `status` and by `watch`; and
//! that it can always be detached, whatever its server does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_tests::promise::Promises;
use vm_tests::{Chance, DISK, Fs, Scene, Signal, Vm, on_both_kernels, on_every_kernel};

const URI: &str = "nbd+unix:///?socket=/run/life.sock";

fn serve(vm: &mut Vm, name: &str, file: &str) -> Result<()> {
    vm.spawn(name, &format!("exec nbd-server --unix /run/life.sock --state-dir /run/state {file}"))?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

fn refused(vm: &mut Vm, command: &str, code: i32, part: &str) -> Result<()> {
    let finished = vm.try_run(command)?;
    ensure!(finished.code == code && finished.output.contains(part), "{command}: {finished:?}");
    Ok(())
}

/// Waits until the status of the one device says something.
fn status(vm: &mut Vm, says: &str) -> Result<()> {
    let until = vm.deadline();
    loop {
        let status = vm.run("nbd-attach status --json")?;
        if status.contains(says) {
            return Ok(());
        }
        ensure!(!until.has_passed(), "no {says} in {status}");
        vm.run("usleep 200000")?;
    }
}

on_both_kernels!(the_same_id_is_the_same_device, Ours);
/// Also when several ask at once; and another server by that id is refused.
fn the_same_id_is_the_same_device(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server", "/tmp/disk")?;
    let attach = format!("nbd-attach attach --id data '{URI}'");
    let race = format!("for i in 1 2 3 4 5; do {attach} 2>/tmp/err$i & done; wait");
    let all = vm.run(&race)?;
    ensure!(
        all.lines().count() == 5 && all.lines().all(|line| line == "/dev/nbd0"),
        "{all}\n{}",
        vm.run("cat /tmp/err*")?
    );
    ensure!(vm.run("nbd-attach status --json | grep -o '\"device\"' | wc -l")? == "1");
    let json = vm.run(&format!("{attach} --json 2>/dev/null"))?;
    ensure!(json.contains(r#""device":"/dev/nbd0""#) && json.contains(r#""id":"data""#), "{json}");
    refused(&mut vm, "nbd-attach attach --id data nbd://127.0.0.1/other", 10, "bears the id data already")?;
    refused(&mut vm, &format!("{attach} --device nbd5"), 10, "leave --device away")?;
    refused(&mut vm, "nbd-attach status nothing", 3, "nothing is not attached")?;
    ensure!(vm.run("nbd-attach status data | grep -c data")? == "1");
    ensure!(vm.run("nbd-attach udev nbd0p3")?.contains("NBD_ATTACH_ID=data"));
    vm.run("nbd-attach detach data")?;
    refused(&mut vm, "nbd-attach detach data", 3, "data is not attached")?;
    ensure!(vm.run(&format!("{attach} 2>/dev/null"))? == "/dev/nbd0");
    // What was remembered may be lost, not what the kernel knows.
    vm.run("rm -r /run/nbd-attach")?;
    ensure!(vm.run(&format!("{attach} 2>/dev/null"))? == "/dev/nbd0");
    ensure!(vm.run("nbd-attach status data --json")?.contains(r#""id":"data""#));
    vm.run("nbd-attach detach data").map(drop)
}

on_both_kernels!(a_keeper_that_was_killed_is_succeeded, Ext4, Ours);
/// Servers and keepers are killed in turn, under a workload; the next keeper finds the device by its id, learns which
/// connections are dead by offering new ones, and no request fails. All of it is told to who watches.
fn a_keeper_that_was_killed_is_succeeded(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = scene.vm().boot()?;
    vm.run(&format!("truncate -s {DISK} /tmp/disk"))?;
    serve(&mut vm, "server-0", "/tmp/disk")?;
    vm.spawn("watch", "exec nbd-attach watch --json")?;
    let keep = format!("exec nbd-attach attach --id data --keep --json --timeout 2 --connections 2 '{URI}'");
    vm.spawn("keeper-0", &keep)?;
    let device = "/dev/nbd0";
    vm.wait_for("keeper-0", r#""device":"/dev/nbd0""#)?;
    status(&mut vm, r#""connections":["alive","alive"]"#)?;
    vm.make_fs(Fs::Ext4, device, "/mnt")?;
    vm.promise("work", "/mnt", 2, chance.draw())?;
    let mut promised = 0;
    for n in 1..=3 {
        promised += chance.within(5..15);
        vm.wait_for_promises("work", promised)?;
        vm.end(&format!("keeper-{}", n - 1))?;
        status(&mut vm, r#""keeper":null"#)?;
        // The server dies while nobody watches, before its successor does or after.
        let late = n == 2;
        if !late {
            vm.end(&format!("server-{}", n - 1))?;
        }
        let again = if n == 3 { "exec nbd-attach keep data --json" } else { &keep };
        vm.spawn(&format!("keeper-{n}"), again)?;
        vm.wait_for(&format!("keeper-{n}"), r#""event":"kept""#)?;
        if late {
            status(&mut vm, r#""connections":["unknown","unknown"]"#)?;
            vm.end(&format!("server-{}", n - 1))?;
        }
        serve(&mut vm, &format!("server-{n}"), "/tmp/disk")?;
        status(&mut vm, r#""connections":["alive","alive"]"#)?;
        promised = u64::try_from(vm.log("work").matches(" promised ").count())?;
    }
    vm.wait_for_promises("work", promised + 5)?;
    vm.end("work")?;
    ensure!(!vm.log("work").contains("stopped: "), "a request failed: {}", vm.log("work"));
    let mut promises = Promises::default();
    promises.hear(&vm.log("work"));
    vm.run(&format!("umount /mnt && mount {device} /mnt"))?;
    vm.verify("/mnt", &promises)?.kept(&format!("seed {}", chance.seed()))?;
    vm.run("umount /mnt && nbd-attach detach data")?;
    ensure!(vm.wait_exit("keeper-3")? == 0, "{}", vm.log("keeper-3"));
    vm.wait_for("watch", r#""event":"detached""#)?;
    let watched = vm.log("watch");
    let count = |event: &str| watched.matches(&format!(r#""event":"{event}""#)).count();
    ensure!(count("attached") == 1 && count("kept") == 4 && count("reconnected") >= 6, "{watched}");
    vm.end("watch")?;
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    Ok(())
}

on_both_kernels!(whatever_the_server_does_a_device_can_be_detached, Ours);
/// In bounded time, with nothing left behind: alive, dead, hanging with requests in flight, with a keeper and
/// without, with a request timeout and without one.
fn whatever_the_server_does_a_device_can_be_detached(scene: &Scene) -> Result<()> {
    // What ends somebody else's TCP connection.
    let mut vm = scene.vm().module("tcp_diag").boot()?;
    vm.run("truncate -s 64M /tmp/disk")?;
    let options = ["--timeout 0", "--timeout 3", "--timeout 600 --keep"];
    let (mut round, mut worst) = (0, Duration::ZERO);
    for options in options {
        for state in ["alive", "dead", "hanging"] {
            round += 1;
            let (server, keeper) = (format!("server-{round}"), format!("keeper-{round}"));
            let what = format!("{options}, {state}");
            let tcp = "--listen 127.0.0.1:10809 --state-dir /run/state /tmp/disk";
            vm.spawn(&server, &format!("exec nbd-server {tcp}"))?;
            vm.wait_for(&server, "nbd://")?;
            let attach = format!("nbd-attach attach {options} --id data nbd://127.0.0.1");
            if options.contains("--keep") {
                vm.spawn(&keeper, &format!("exec {attach}"))?;
                vm.wait_for(&keeper, "kept by")?;
            } else {
                vm.run(&attach)?;
            }
            match state {
                "dead" => vm.end(&server)?,
                "hanging" => vm.kill(&server, Signal::Stop)?,
                _ => {}
            }
            // More than fits into any buffer, and nobody waits for it.
            vm.run("dd if=/dev/zero of=/dev/nbd0 bs=1M count=24 >/dev/null 2>&1 & usleep 500000")?;
            let start = Instant::now();
            vm.run("nbd-attach detach --force data")?;
            worst = worst.max(start.elapsed());
            let until = vm.deadline();
            while !vm.run("ls -d /sys/block/nbd*/pid 2>/dev/null || true")?.is_empty() {
                ensure!(!until.has_passed(), "{what}: still attached");
                vm.run("usleep 200000")?;
            }
            if options.contains("--keep") {
                ensure!(vm.wait_exit(&keeper)? == 0, "{what}: {}", vm.log(&keeper));
            }
            if state != "dead" {
                vm.kill(&server, Signal::Cont)?;
                vm.end(&server)?;
            }
            let left = vm.run("ps -o stat,args | grep nbd-attach | grep -v grep || true")?;
            ensure!(left.is_empty(), "{what}: {left}");
        }
    }
    println!("the slowest detach took {worst:?}");
    Ok(())
}

on_both_kernels!(a_driver_that_is_held_up_keeps_nobody_from_ending, Ours);
/// A Unix socket that only the kernel has, and for ever: only the server can end it, and is named.
fn a_driver_that_is_held_up_keeps_nobody_from_ending(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 64M /tmp/disk")?;
    serve(&mut vm, "server", "/tmp/disk")?;
    vm.run(&format!("nbd-attach attach --timeout 0 '{URI}'"))?;
    vm.kill("server", Signal::Stop)?;
    vm.run("dd if=/dev/zero of=/dev/nbd0 bs=1M count=24 >/dev/null 2>&1 & usleep 500000")?;
    let pid = vm.run("cat /run/spawn/server.pid")?;
    refused(&mut vm, "nbd-attach detach --force nbd0", 5, &format!("`kill -9 {pid}` ends"))?;
    // While the driver is held up, others end, too; and what they have asked for and given up is taken back.
    vm.run("truncate -s 16M /tmp/other")?;
    let other = vm.serve("other", "--state-dir /run/state /tmp/other")?;
    let late = vm.try_run(&format!("nbd-attach attach '{other}'"))?;
    ensure!(late.code == 1 && late.output.contains("did not answer within"), "{late:?}");
    vm.run(&format!("kill -9 {pid}; while pidof nbd-attach; do usleep 10000; done"))?;
    let left = vm.run("ls -d /sys/block/nbd*/pid 2>/dev/null || true")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

on_every_kernel!(growth_is_noticed, Nbdkit, Ours);
/// The device grows while it is used; it never shrinks. nbdkit looks at the file for every connection.
fn growth_is_noticed(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().module("tcp_diag").boot()?;
    vm.run("truncate -s 16M /tmp/disk")?;
    vm.spawn("server", "exec nbdkit --foreground --ipaddr 127.0.0.1 --port 10809 file /tmp/disk")?;
    vm.run("until nbd-attach info nbd://127.0.0.1 >/dev/null 2>&1; do usleep 100000; done")?;
    let keep =
        "exec nbd-attach attach --keep --json --id grows --growth-interval 1 --timeout 2 --connections 3";
    vm.spawn("first", &format!("{keep} nbd://127.0.0.1"))?;
    vm.wait_for("first", r#""event":"kept""#)?;
    // Whoever succeeds a keeper has none of its sockets, but replaces them all the same.
    vm.end("first")?;
    vm.spawn("keeper", &format!("{keep} nbd://127.0.0.1"))?;
    vm.wait_for("keeper", r#""event":"kept""#)?;
    ensure!(vm.run("nbd-attach status --json")?.contains(r#""connections":["alive","alive","alive"]"#));
    vm.run("truncate -s 48M /tmp/disk")?;
    vm.wait_for("keeper", r#""event":"resized","size_bytes":50331648"#)?;
    ensure!(vm.run("blockdev --getsize64 /dev/nbd0")? == "50331648");
    // One connection alone, then all others.
    let log = vm.log("keeper");
    let renewals = log.lines().filter_map(|line| {
        ["renewing", "reconnected"].into_iter().find(|event| line.contains(&format!("\"event\":\"{event}\"")))
    });
    let wanted = ["renewing", "reconnected", "renewing", "renewing", "reconnected", "reconnected"];
    ensure!(renewals.eq(wanted), "{log}");
    vm.run("dd if=/dev/urandom of=/dev/nbd0 bs=1M seek=40 count=8 conv=fsync && cmp /dev/nbd0 /tmp/disk")?;
    vm.run("truncate -s 32M /tmp/disk")?;
    vm.wait_for("keeper", r#""event":"shrunk","size_bytes":33554432"#)?;
    ensure!(vm.run("blockdev --getsize64 /dev/nbd0")? == "50331648");
    vm.run("nbd-attach detach nbd0")?;
    let line = vm.wait_for("keeper", "detached").context("the keeper ends")?;
    ensure!(vm.wait_exit("keeper")? == 0, "{line}");
    Ok(())
}
