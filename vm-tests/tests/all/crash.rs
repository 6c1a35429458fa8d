//! Lets the kernel judge what a crash could have left: the states of committed recordings are mounted one after the
//! other, on ext4 to see that the judge in memory says the same, on xfs because nothing else can read it. And reads what
//! the kernel's own recorder, dm-log-writes, has written.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vm_tests::crash::{BROKEN, trace};
use vm_tests::{Scene, Vm, on_both_kernels, paths};

/// States of each contract that an ordinary run compares.
const COMPARED: [u64; 2] = [120, 25];

on_both_kernels!(the_judge_in_memory_says_what_the_kernel_says, Ours);
fn the_judge_in_memory_says_what_the_kernel_says(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().disk(copy(scene, "ext4-4-writeback-ordinary")?).boot()?;
    let [honest, broken] = COMPARED;
    let mut told = explored(&mut vm, &format!("--oracle compare --budget {honest}"))?;
    for contract in BROKEN {
        told += &explored(&mut vm, &format!("--oracle compare --budget {broken} --contract {contract}"))?;
    }
    println!("compared\n{told}");
    Ok(())
}

on_both_kernels!(xfs_keeps_its_promises_if_the_device_does, Ours);
fn xfs_keeps_its_promises_if_the_device_does(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().disk(copy(scene, "xfs-4-writeback-ordinary")?).boot()?;
    let mut told = explored(&mut vm, "--oracle mount:xfs --budget 60")?;
    told += &caught(&mut vm, "no-fua")?;
    println!("xfs\n{told}");
    Ok(())
}

on_both_kernels!(a_log_that_the_kernel_made_is_read, Ext4, Dmsetup, Ours);
/// What dm-log-writes has recorded of ext4 leads to the very content of its device.
fn a_log_that_the_kernel_made_is_read(scene: &Scene) -> Result<()> {
    let (data, log) = (scene.disk("data", 32 << 20)?, scene.disk("log", 128 << 20)?);
    let mut vm = scene.vm().module("dm-log-writes").disk(data).disk(log).boot()?;
    vm.run("modprobe dm-log-writes")?;
    vm.run("dmsetup create --noudevsync logged --table '0 65536 log-writes /dev/vda /dev/vdb'")?;
    vm.run("dmsetup mknodes; mkfs.ext4 -q /dev/mapper/logged && mount /dev/mapper/logged /mnt")?;
    vm.run(
        "for i in 1 2 3 4; do echo $i >/mnt/$i; sync /mnt/$i; dmsetup message logged 0 mark synced-$i; done",
    )?;
    vm.run("umount /mnt && dmsetup remove --noudevsync logged")?;
    vm.run("nbd-crash import /dev/vdb /tmp/recording --size 32M")?;
    let shown = vm.run("nbd-crash show /tmp/recording")?;
    let marks = shown.lines().filter(|line| line.contains("mark: synced-")).count();
    ensure!(marks == 4 && shown.contains("FLUSH") && shown.contains("FUA"), "{shown}");
    vm.run("nbd-crash check /tmp/recording --image /dev/vda")?;
    let raw = "nbd-crash explore /tmp/recording --budget 300 --violations 1 --contract";
    vm.run(&format!("{raw} nbd"))?;
    let broken = vm.try_run(&format!("{raw} no-flush"))?;
    ensure!(broken.code == 1, "{}", broken.output);
    Ok(())
}

on_both_kernels!(what_the_readme_says_works, Ext4, Ours);
/// Its commands, as they are typed: a file system as mkfs makes it, and a state to go to and look at.
fn what_the_readme_says_works(scene: &Scene) -> Result<()> {
    let readme = fs::read_to_string(paths::workspace().join("README.md"))?;
    let chapter = readme.split("## What a crash could leave").nth(1).context("the chapter is there")?;
    let commands =
        chapter.split("```sh\n").nth(1).and_then(|it| it.split("```").next()).context("so are they")?;
    let mut vm = scene.vm().boot()?;
    let workload = fs::read_to_string(paths::workspace().join("nbd-crash/workloads/ordinary.txt"))?;
    vm.run(&format!(
        "mkdir -p nbd-crash/workloads; cat >nbd-crash/workloads/ordinary.txt <<'END'\n{workload}\nEND"
    ))?;
    let recorded: Vec<_> = commands.lines().take_while(|line| !line.contains("explore")).collect();
    ensure!(recorded.len() == 4, "{commands}");
    let explores: Vec<_> = commands.lines().filter(|line| line.contains("explore")).collect();
    let [all, no_fua] = explores[..] else { bail!("{commands}") };
    let without_remark = |line: &str| line.split(" #").next().unwrap_or_default().to_owned();
    // A shell of its own, which has jobs.
    vm.run(&format!("cat >/tmp/typed <<'END'\nset -me\n{}\nwait\nEND", recorded.join("\n")))?;
    vm.run("sh /tmp/typed >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }")?;
    vm.run(&format!("{} --budget 3000", without_remark(all)))?;
    vm.run("grep -q '<svg' crash.html")?;
    let broken = vm.try_run(&format!("{} --budget 3000", without_remark(no_fua)))?;
    ensure!(broken.code == 1 && broken.output.contains("it had FUA"), "{}", broken.output);
    let state = broken.output.lines().next().context("a state")?.to_owned();
    vm.spawn("state", &format!("exec nbd-crash serve disk.nbdrec --state '{state}'"))?;
    vm.wait_for("state", "nbd://127.0.0.1")?;
    vm.run("nbd-attach attach nbd://localhost && mount /dev/nbd0 /mnt && ls /mnt && umount /mnt")?;
    Ok(())
}

/// A disk with a committed recording: QEMU locks what it uses.
fn copy(scene: &Scene, name: &str) -> Result<PathBuf> {
    let to = scene.scratch().join(name);
    fs::copy(trace(name), &to).with_context(|| name.to_owned())?;
    Ok(to)
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
