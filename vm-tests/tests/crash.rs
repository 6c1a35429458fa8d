//! Lets the kernel judge what a crash could have left: the states of committed recordings are mounted one after the
//! other, on ext4 to see that the judge in memory says the same, on xfs because nothing else can read it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::crash::trace;
use vm_tests::{Scene, Vm, on_both_kernels};

/// What the broken contracts of servers are called.
const BROKEN: [&str; 5] = ["unsafe", "no-fua", "no-flush", "late-flush", "own-connection"];

on_both_kernels!(the_judge_in_memory_says_what_the_kernel_says, Ours);
fn the_judge_in_memory_says_what_the_kernel_says(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().disk(trace("ext4-4-writeback")).boot()?;
    let mut told = explored(&mut vm, "--oracle compare --budget 400")?;
    for contract in BROKEN {
        told += &explored(&mut vm, &format!("--oracle compare --budget 60 --contract {contract}"))?;
    }
    println!("compared\n{told}");
    Ok(())
}

on_both_kernels!(xfs_keeps_its_promises_if_the_device_does, Ours);
fn xfs_keeps_its_promises_if_the_device_does(scene: &Scene) -> Result<()> {
    for connections in [1, 4] {
        let mut vm = scene.vm().disk(trace(&format!("xfs-{connections}-writeback"))).boot()?;
        let mut told = explored(&mut vm, "--oracle mount:xfs --budget 200")?;
        for contract in BROKEN.into_iter().filter(|it| *it != "own-connection" || connections > 1) {
            told += &caught(&mut vm, contract)?;
        }
        println!("xfs, {connections} connections\n{told}");
    }
    Ok(())
}

/// Explores the recording on the first disk, and finds no promise broken.
fn explored(vm: &mut Vm, how: &str) -> Result<String> {
    let outcome = explore(vm, how)?;
    ensure!(outcome["violations"] == Value::Array(vec![]), "{how}: {outcome:#}");
    ensure!(outcome["states"].as_u64() > Some(10), "{how}: {outcome:#}");
    summary(how, &outcome)
}

/// Finds that a broken contract breaks promises, and who is guilty.
fn caught(vm: &mut Vm, contract: &str) -> Result<String> {
    let how = format!("--oracle mount:xfs --contract {contract} --budget 1000 --violations 1");
    let outcome = explore(vm, &how)?;
    let guilt = &outcome["violations"][0]["guilt"];
    ensure!(guilt["checks"].as_u64().is_some_and(|checks| checks < 20), "{how}: {outcome:#}");
    let words = guilt["lost"][0]["words"].to_string();
    ensure!(words.contains("FUA") || words.contains("FLUSH"), "nobody promised it: {words}");
    summary(contract, &outcome)
}

fn summary(what: &str, outcome: &Value) -> Result<String> {
    let seconds = outcome["seconds"].as_f64().context("it takes time")?;
    let rate = outcome["states"].as_f64().context("there are states")? / seconds;
    let (states, first) = (&outcome["states"], &outcome["first_violation"]);
    let checks = &outcome["violations"][0]["guilt"]["checks"];
    Ok(format!("{what}: {states} states, {rate:.1} a second, first violation {first}, checks {checks}\n"))
}

/// What exploring the recording on the first disk leads to.
fn explore(vm: &mut Vm, how: &str) -> Result<Value> {
    let explore = format!("nbd-crash explore /dev/vda --json {how} 2>/tmp/err; [ $? -lt 2 ] || cat /tmp/err");
    let out = vm.run_within(Duration::from_secs(300), &explore)?;
    serde_json::from_str(&out).with_context(|| out.clone())
}
