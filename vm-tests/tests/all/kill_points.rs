//! Proves that being killed before any of its system calls makes of nbd-attach never a third thing: the same command brings
//! a device that works, or there is none, and nothing is left over; under a keeper no request fails.
//!
//! Calls that nobody else could notice do not count (see `kill-at`): to be killed before one of them or before the next
//! that does is the same. An ordinary run kills at a few points of each act; `NBD_VM_KILLS=all cargo test -p vm-tests
//! kill_points` at each of them, and `NBD_VM_KILLS=50` at fifty. With every second one the processes that the command has
//! started are killed, too.

use std::env;

use anyhow::{Context, Result, ensure};
use vm_tests::{Chance, Scene, Signal, Vm, on_both_kernels, on_every_kernel};

const URI: &str = "nbd+unix:///?socket=/run/points.sock";
const READ: &str = "dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2>&1";
const SIZE: u64 = 16 << 20;
/// What `kill-at` ends with if it killed.
const KILLED: i32 = 137;
/// Kills never.
const COUNT_ALL: &str = "kill-at 1000000";
/// Points of each act in an ordinary run.
const KILLS: u64 = 4;
/// What `nbd-attach detach` ends with if there is nothing to detach.
const NOT_ATTACHED: i32 = 3;
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

/// How often to kill in each act; always, if there is no number.
fn kills() -> Option<u64> {
    env::var("NBD_VM_KILLS").map_or(Some(KILLS), |count| count.parse().ok())
}

/// Points spread over so many calls, the first and the last ones included.
fn points(calls: u64) -> Vec<u64> {
    match kills().filter(|kills| *kills < calls) {
        Some(kills) => (0..kills).map(|number| 1 + (calls - 1) * number / (kills - 1).max(1)).collect(),
        None => (1..=calls).collect(),
    }
}

/// Kills at a point.
fn kill_at(point: u64) -> String {
    let whom = if point.is_multiple_of(2) { "--all " } else { "" };
    format!("kill-at {whom}{point}")
}

/// How many calls somebody who counts them has seen.
fn counted(said: &str) -> Result<u64> {
    let words = said.lines().find_map(|line| line.strip_prefix("calls "));
    let number = words.and_then(|words| words.split(',').next());
    Ok(number.with_context(|| said.to_owned())?.parse()?)
}

/// How many calls a command needs.
fn calls(vm: &mut Vm, command: &str) -> Result<u64> {
    counted(&vm.run(&format!("{COUNT_ALL} {command} 2>&1"))?)
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
        let killed = vm.try_run(&format!("{} {attach}", kill_at(point)))?;
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
        let killed = vm.try_run(&format!("{} {detach}", kill_at(point)))?;
        ensure!([0, KILLED].contains(&killed.code), "{at}: {killed:?}");
        // It is there and works, or it goes.
        vm.run(&format!("{attach} && {READ} && {detach}")).with_context(|| at)?;
        nothing_left(&mut vm)?;
    }
    println!(
        "{} of {to_attach} and {} of {to_detach} calls",
        points(to_attach).len(),
        points(to_detach).len()
    );
    Ok(())
}

const IS_KEPT: &str = "nbd-attach status --json 2>/dev/null | grep -q '\"keeper\":[0-9]'";

fn until_kept(vm: &mut Vm) -> Result<()> {
    vm.run(&format!("until {IS_KEPT}; do usleep 20000; done")).map(drop)
}

fn keep() -> String {
    format!("nbd-attach attach --keep --id data --timeout 1 '{URI}'")
}

on_both_kernels!(a_kept_device_may_be_killed_for_at_its_beginning_and_end, Ours);
/// While it is attached, and while it is detached under its keeper.
fn a_kept_device_may_be_killed_for_at_its_beginning_and_end(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    let (keep, detach) = (keep(), "nbd-attach detach data");
    vm.spawn("counted", &format!("exec {COUNT_ALL} {keep}"))?;
    vm.wait_for("counted", "kept by")?;
    let to_detach = calls(&mut vm, detach)?;
    vm.wait_exit("counted")?;
    let to_keep = counted(&vm.log("counted"))?;
    for point in points(to_keep) {
        let at = format!("attach --keep, call {point} of {to_keep}");
        let (killed, again) = (format!("killed-{point}"), format!("again-{point}"));
        vm.spawn(&killed, &format!("exec {} {keep}", kill_at(point)))?;
        let is_there = format!("kill -0 $(cat /run/spawn/{killed}.pid) 2>/dev/null");
        vm.run(&format!("while {is_there} && ! {IS_KEPT}; do usleep 20000; done"))?;
        // Its last calls are those of its end.
        vm.run(&format!("if {is_there}; then {detach} || true; fi"))?;
        ensure!([0, KILLED].contains(&vm.wait_exit(&killed)?), "{at}: {}", vm.log(&killed));
        vm.spawn(&again, &format!("exec {keep}"))?;
        until_kept(&mut vm).with_context(|| at.clone())?;
        vm.run(&format!("{READ} && {detach}")).with_context(|| at)?;
        ensure!(vm.wait_exit(&again)? == 0, "{}", vm.log(&again));
        nothing_left(&mut vm)?;
    }
    for point in points(to_detach) {
        let at = format!("detach of a kept device, call {point} of {to_detach}");
        let keeper = format!("keeper-{point}");
        vm.spawn(&keeper, &format!("exec {keep}"))?;
        until_kept(&mut vm)?;
        let killed = vm.try_run(&format!("{} {detach}", kill_at(point)))?;
        ensure!([0, KILLED].contains(&killed.code), "{at}: {killed:?}");
        let again = vm.try_run(detach)?;
        ensure!([0, NOT_ATTACHED].contains(&again.code), "{at}: {again:?}");
        ensure!(vm.wait_exit(&keeper)? == 0, "{at}: {}", vm.log(&keeper));
        nothing_left(&mut vm).with_context(|| at)?;
    }
    println!("{} of {to_keep} and {} of {to_detach} calls", points(to_keep).len(), points(to_detach).len());
    Ok(())
}

/// Restarts the server of a keeper that is watched, and waits until it has reconnected the device, or was killed.
fn restart_server(vm: &mut Vm, number: usize, keeper: &str) -> Result<()> {
    vm.end(&format!("server-{}", number - 1))?;
    serve(vm, &format!("server-{number}"))?;
    let until = vm.deadline();
    while vm.run(&format!("kill -0 $(cat /run/spawn/{keeper}.pid) 2>&1 || true"))?.is_empty()
        && !vm.log(keeper).contains("is back after")
    {
        ensure!(!until.has_passed(), "{keeper} does not reconnect: {}", vm.log(keeper));
        vm.run("usleep 50000")?;
    }
    Ok(())
}

/// How many calls it takes to reconnect a device, and to take one over: afterwards keeper-1 has it.
fn count_renewals(vm: &mut Vm) -> Result<(u64, u64)> {
    vm.spawn("watcher-0", &format!("exec {COUNT_ALL} --pid $(cat /run/spawn/keeper-0.pid)"))?;
    vm.wait_for("watcher-0", "watching")?;
    restart_server(vm, 1, "keeper-0")?;
    vm.kill("keeper-0", Signal::Kill)?;
    vm.wait_exit("watcher-0")?;
    let to_reconnect = counted(&vm.log("watcher-0"))?;
    vm.spawn("counted", &format!("exec {COUNT_ALL} {}", keep()))?;
    vm.wait_for("counted", "kept by")?;
    vm.run("usleep 500000")?;
    vm.run("kill -9 $(pidof nbd-attach)")?;
    vm.wait_exit("counted")?;
    let to_take_over = counted(&vm.log("counted"))?;
    vm.spawn("keeper-1", &format!("exec {}", keep()))?;
    until_kept(vm)?;
    Ok((to_reconnect, to_take_over))
}

on_both_kernels!(a_keeper_may_be_killed_anywhere, Ours);
/// While it reconnects, and while it takes a device over; all the time the device is written and read.
fn a_keeper_may_be_killed_anywhere(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = ready(scene)?;
    let keep = keep();
    vm.spawn("keeper-0", &format!("exec {keep}"))?;
    until_kept(&mut vm)?;
    vm.spawn("work", &format!("exec exercise /dev/nbd0 {SIZE} {} /run/stop", chance.draw()))?;
    vm.wait_for("work", "exercising")?;

    let (to_reconnect, to_take_over) = count_renewals(&mut vm)?;

    for (number, point) in (2..).zip(points(to_reconnect)) {
        let at = format!("reconnecting, call {point} of {to_reconnect}");
        let (keeper, watcher) = (format!("keeper-{}", number - 1), format!("watcher-{number}"));
        vm.spawn(&watcher, &format!("exec {} --pid $(cat /run/spawn/{keeper}.pid)", kill_at(point)))?;
        vm.wait_for(&watcher, "watching")?;
        restart_server(&mut vm, number, &keeper).with_context(|| at.clone())?;
        vm.run(&format!("kill -9 $(cat /run/spawn/{keeper}.pid) 2>/dev/null || true"))?;
        vm.wait_exit(&keeper)?;
        vm.spawn(&format!("keeper-{number}"), &format!("exec {keep}"))?;
        until_kept(&mut vm).with_context(|| at.clone())?;
        vm.run(READ).with_context(|| at)?;
    }
    let last = points(to_reconnect).len() + 1;
    vm.end(&format!("keeper-{last}"))?;
    for point in points(to_take_over) {
        let at = format!("taking over, call {point} of {to_take_over}");
        let name = format!("successor-{point}");
        vm.spawn(&name, &format!("exec {} {keep}", kill_at(point)))?;
        vm.run(&format!(
            "for i in $(seq 100); do kill -0 $(cat /run/spawn/{name}.pid) 2>/dev/null || break; usleep 20000; done"
        ))?;
        vm.run("kill -9 $(pidof nbd-attach) 2>/dev/null || true")?;
        vm.wait_exit(&name).with_context(|| at.clone())?;
        vm.run(&format!("nbd-attach status && {READ}")).with_context(|| at)?;
    }
    vm.spawn("keeper", &format!("exec {keep}"))?;
    until_kept(&mut vm)?;
    vm.run("touch /run/stop")?;
    ensure!(vm.wait_exit("work")? == 0, "seed {}: {}", chance.seed(), vm.log("work"));
    vm.run("nbd-attach detach data")?;
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    println!(
        "{} of {to_reconnect} and {} of {to_take_over} calls",
        points(to_reconnect).len(),
        points(to_take_over).len()
    );
    Ok(())
}
