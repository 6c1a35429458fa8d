//! Proves that being killed before any of its system calls makes of nbd-attach never a third thing: the same command brings
//! a device that works, or there is none, and nothing is left over; under a keeper no request fails.
//!
//! `NBD_VM_KILLS=50 cargo test -p vm-tests kill_points` kills at fifty points of each act instead of a few.

use std::env;

use anyhow::{Context, Result, ensure};
use vm_tests::{Chance, Scene, Signal, Vm, on_both_kernels, on_every_kernel};

const URI: &str = "nbd+unix:///?socket=/run/points.sock";
const READ: &str = "dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2>&1";
const SIZE: u64 = 16 << 20;
/// What `kill-at` ends with if it killed.
const KILLED: i32 = 137;
/// Where a program has started and its libraries have made themselves at home; what comes before touches nothing.
const FIRST_CALL: u64 = 40;

fn serve(vm: &mut Vm, name: &str) -> Result<()> {
    vm.spawn(name, "exec nbd-server --unix /run/points.sock --state-dir /run/state /tmp/disk")?;
    vm.wait_for(name, "nbd+unix:").map(drop)
}

fn ready(scene: &Scene) -> Result<Vm> {
    let mut vm = scene.vm().boot()?;
    vm.run(&format!("truncate -s {SIZE} /tmp/disk; modprobe nbd"))?;
    serve(&mut vm, "server-0")?;
    Ok(vm)
}

/// How often to kill in each act.
fn kills() -> u64 {
    env::var("NBD_VM_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(5)
}

/// Points spread over so many calls, the last ones included.
fn points(calls: u64) -> Vec<u64> {
    let (first, kills) = (FIRST_CALL.min(calls), kills());
    (0..kills).map(|number| first + (calls - first) * number / (kills - 1).max(1)).collect()
}

/// How many calls a command needs.
fn calls(vm: &mut Vm, command: &str) -> Result<u64> {
    let said = vm.run(&format!("kill-at 1000000 {command} 2>&1"))?;
    let calls = said.lines().find_map(|line| line.strip_prefix("calls "));
    Ok(calls.with_context(|| said.clone())?.parse()?)
}

/// No device, and of what was remembered only who may attach by which id.
fn nothing_left(vm: &mut Vm) -> Result<()> {
    let left =
        vm.run("ls -d /sys/block/nbd*/pid 2>/dev/null; ls /run/nbd-attach | grep -v '[.]id$' || true")?;
    ensure!(left.is_empty(), "left over: {left}");
    Ok(())
}

on_every_kernel!(attaching_and_detaching_may_be_killed_anywhere, Ours);
fn attaching_and_detaching_may_be_killed_anywhere(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    let attach = format!("nbd-attach attach --id data --timeout 2 '{URI}'");
    let detach = "nbd-attach detach data";
    let to_attach = calls(&mut vm, &attach)?;
    let to_detach = calls(&mut vm, detach)?;
    nothing_left(&mut vm)?;
    for point in points(to_attach) {
        let at = format!("attach, call {point} of {to_attach}");
        let killed = vm.try_run(&format!("kill-at {point} {attach}"))?;
        ensure!([0, KILLED].contains(&killed.code), "{at}: {killed:?}");
        let again = vm.run(&format!("{attach} && {READ}")).with_context(|| at.clone())?;
        ensure!(again.contains("/dev/nbd0"), "{at}: {again}");
        ensure!(vm.run("nbd-attach status --json")?.contains(r#""state":"up""#), "{at}");
        vm.run(detach).with_context(|| at)?;
        nothing_left(&mut vm)?;
    }
    for point in points(to_detach) {
        let at = format!("detach, call {point} of {to_detach}");
        vm.run(&attach)?;
        let killed = vm.try_run(&format!("kill-at {point} {detach}"))?;
        ensure!([0, KILLED].contains(&killed.code), "{at}: {killed:?}");
        // It is there and works, or it goes.
        vm.run(&format!("{attach} && {READ} && {detach}")).with_context(|| at)?;
        nothing_left(&mut vm)?;
    }
    println!("{} points of {to_attach} and {to_detach} calls", 2 * kills());
    Ok(())
}

on_both_kernels!(a_keeper_may_be_killed_anywhere, Ours);
/// While it attaches, while it takes a device over, while it reconnects; all the time the device is written and read.
fn a_keeper_may_be_killed_anywhere(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = ready(scene)?;
    let keep = format!("nbd-attach attach --keep --id data --timeout 1 '{URI}'");
    let kept =
        "until nbd-attach status --json 2>/dev/null | grep -q '\"keeper\":[0-9]'; do usleep 20000; done";
    vm.spawn("counted", &format!("exec kill-at 1000000 {keep}"))?;
    vm.wait_for("counted", "kept by")?;
    vm.run("kill -9 $(pidof nbd-attach)")?;
    vm.wait_exit("counted")?;
    let line = vm.wait_for("counted", "calls ")?;
    let to_keep: u64 = line.rsplit(' ').next().context("a number")?.parse()?;
    vm.run("nbd-attach detach data")?;
    for (number, point) in points(to_keep).into_iter().enumerate() {
        let at = format!("attach --keep, call {point} of {to_keep}");
        let (killed, again) = (format!("killed-{number}"), format!("again-{number}"));
        vm.spawn(&killed, &format!("exec kill-at {point} {keep}"))?;
        ensure!(vm.wait_exit(&killed)? == KILLED, "{at}: {}", vm.log(&killed));
        vm.spawn(&again, &format!("exec {keep}"))?;
        vm.run(&format!("{kept}; {READ} && nbd-attach detach data")).with_context(|| at)?;
        ensure!(vm.wait_exit(&again)? == 0, "{}", vm.log(&again));
        nothing_left(&mut vm)?;
    }

    vm.spawn("keeper-0", &format!("exec {keep}"))?;
    vm.run(kept)?;
    vm.spawn("work", &format!("exec exercise /dev/nbd0 {SIZE} {} /run/stop", chance.draw()))?;
    vm.wait_for("work", "exercising")?;
    // A reconnection takes about as many calls as an attach.
    for (number, point) in (1..).zip(points(to_keep)) {
        let at = format!("reconnecting, call {point}");
        let keeper = format!("keeper-{}", number - 1);
        let watcher = format!("watcher-{number}");
        vm.spawn(&watcher, &format!("exec kill-at {point} --pid $(cat /run/spawn/{keeper}.pid)"))?;
        vm.wait_for(&watcher, "watching")?;
        vm.kill(&format!("server-{}", number - 1), Signal::Kill)?;
        vm.wait_exit(&format!("server-{}", number - 1))?;
        serve(&mut vm, &format!("server-{number}"))?;
        ensure!(vm.wait_exit(&keeper)? == KILLED, "{at}: {}", vm.log(&keeper));
        // Whoever takes it over may be killed at it, too.
        let killed = vm.try_run(&format!("kill-at {point} {keep} 2>&1"))?;
        ensure!(killed.code == KILLED, "taking over, call {point}: {killed:?}");
        vm.spawn(&format!("keeper-{number}"), &format!("exec {keep}"))?;
        vm.run(kept).with_context(|| at.clone())?;
        vm.run(READ).with_context(|| at)?;
    }
    vm.run("touch /run/stop")?;
    ensure!(vm.wait_exit("work")? == 0, "seed {}: {}", chance.seed(), vm.log("work"));
    vm.run("nbd-attach detach data")?;
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    println!("{} points", 3 * kills());
    Ok(())
}
