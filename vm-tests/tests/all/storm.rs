//! Proves that devices under `--keep` come through whatever happens to their servers and the network: killed, ended,
//! paused, cut off, at random, while ext4, xfs and bare devices are exercised and verified, with one connection and with four, in the
//! clear and encrypted. No operation fails and no byte is wrong.
//!
//! `NBD_VM_STORMS` says how many disturbances there are (default: one of each kind), `NBD_VM_DISTURBANCE` that all are
//! of one kind.

use std::env;

use anyhow::{Context, Result, ensure};
use vm_tests::{Chance, DISK, Fs, PKI, Scene, Signal, Vm, on_both_kernels};

/// Seconds after which a request is sent again.
const TIMEOUT: u64 = 2;
/// Seconds that a pause or a cut lasts: longer than that.
const ABSENCE: u64 = 4;
const KINDS: [&str; 4] = ["kill", "end", "pause", "cut"];
/// Bytes of a target that are exercised.
const SIZE: u64 = 6 << 20;
const NEAR: &str = "10.1.0.1/24";
const FAR: &str = "10.1.0.2";
const SERVERS: [(&str, u16, &str); 2] = [
    ("plain", 10809, ""),
    ("tls", 10810, "--tls-cert /run/pki/server-cert.pem --tls-key /run/pki/server-key.pem"),
];

struct Target {
    name: &'static str,
    server: usize,
    on: On,
    connections: u32,
}

/// What is done to a device.
#[derive(Clone, Copy, PartialEq)]
enum On {
    /// `exercise` on a file.
    File(Fs),
    /// `exercise` on the device itself.
    Device,
    /// fio's verification, past the cache, with many requests at once.
    Fio,
}

const TARGETS: [Target; 5] = [
    Target { name: "ext4", server: 0, on: On::File(Fs::Ext4), connections: 1 },
    Target { name: "xfs", server: 1, on: On::File(Fs::Xfs), connections: 4 },
    Target { name: "bare", server: 0, on: On::Device, connections: 4 },
    Target { name: "vault", server: 1, on: On::Device, connections: 1 },
    Target { name: "fio", server: 1, on: On::Fio, connections: 4 },
];
/// Each round of fio counts for as much as is waited for after a disturbance.
const STEPS: u64 = 200;

impl Target {
    /// Attaches it, and starts to exercise it.
    fn begin(&self, vm: &mut Vm, seed: u64) -> Result<()> {
        let Target { name, server, on, connections } = self;
        let port = SERVERS[*server].1;
        let scheme = if *server == 0 { "nbd" } else { "nbds" };
        let tls = format!("--tls-certificates {PKI} --tls-hostname localhost");
        let tls = if *server == 0 { "" } else { &tls };
        let options = format!("--keep --id {name} --timeout {TIMEOUT} --connections {connections} {tls}");
        let keeper = format!("keeper-{name}");
        vm.spawn(&keeper, &format!("exec nbd-attach attach {options} {scheme}://{FAR}:{port}/{name}"))?;
        let line = vm.wait_for(&keeper, "/dev/nbd")?;
        let device =
            line.split_whitespace().find(|word| word.starts_with("/dev/nbd")).context("no device")?;
        let device = device.trim_end_matches(':').to_owned();
        let exercise = |place: &str| format!("exec exercise {place} {SIZE} {seed} /run/stop");
        let work = match on {
            On::Device => exercise(&device),
            On::Fio => fio(&device, seed),
            On::File(fs) => {
                vm.make_fs(*fs, &device, &format!("/mnt/{name}"))?;
                exercise(&format!("/mnt/{name}/file"))
            }
        };
        vm.spawn(name, &work)?;
        vm.wait_for(name, "exercising").map(drop)
    }

    /// Waits until it has done so much; or it has failed.
    fn steps(&self, vm: &Vm) -> u64 {
        let log = vm.log(self.name);
        let steps = log.lines().rev().find_map(|line| line.strip_prefix("steps ")?.parse().ok());
        steps.unwrap_or(0)
    }
}

fn fio(device: &str, seed: u64) -> String {
    let load = "--rw=randwrite --bsrange=4k-64k --size=6m --direct=1 --ioengine=libaio --iodepth=16";
    let verify = "--verify=crc32c --verify_fatal=1 --do_verify=1";
    format!(
        "echo exercising; n=0; while [ ! -e /run/stop ]; do \
         fio --name=fio --filename={device} {load} {verify} --randseed=$(({seed} % 1000000 + n)) >/tmp/fio.log 2>&1 \
         || {{ cat /tmp/fio.log; exit 1; }}; n=$((n + {STEPS})); echo steps $n; done; echo all well: $n"
    )
}

/// A second network, where the servers are.
fn far_away(vm: &mut Vm) -> Result<()> {
    vm.run("modprobe veth && ip link add near type veth")?;
    vm.spawn("network", "exec unshare -n sleep 100000")?;
    vm.run("until [ $(readlink /proc/$(cat /run/spawn/network.pid)/ns/net) != $(readlink /proc/self/ns/net) ]; do usleep 1000; done")?;
    vm.run("ip link set veth0 netns $(cat /run/spawn/network.pid)")?;
    vm.run(&format!("ip addr add {NEAR} dev near && ip link set near up"))?;
    let there = format!("ip addr add {FAR}/24 dev veth0 && ip link set veth0 up && ip link set lo up");
    vm.run(&format!("nsenter -t $(cat /run/spawn/network.pid) -n sh -c '{there}'")).map(drop)
}

fn serve(vm: &mut Vm, life: usize) -> Result<()> {
    for (server, (name, port, keys)) in SERVERS.iter().enumerate() {
        let exports = TARGETS.iter().filter(|target| target.server == server);
        let exports: Vec<String> = exports.map(|target| format!("{0}=/tmp/{0}", target.name)).collect();
        let words =
            format!("--listen {FAR}:{port} {keys} --state-dir /run/state-{name} {}", exports.join(" "));
        let server = format!("{name}-{life}");
        vm.spawn(&server, &format!("exec nsenter -t $(cat /run/spawn/network.pid) -n nbd-server {words}"))?;
        vm.wait_for(&server, "listening")?;
    }
    Ok(())
}

fn signal(vm: &mut Vm, life: usize, signal: Signal) -> Result<()> {
    SERVERS.iter().try_for_each(|(name, ..)| vm.kill(&format!("{name}-{life}"), signal))
}

fn gone(vm: &mut Vm, life: usize) -> Result<()> {
    SERVERS.iter().try_for_each(|(name, ..)| vm.wait_exit(&format!("{name}-{life}")).map(drop))
}

fn disturb(vm: &mut Vm, kind: &str, life: &mut usize) -> Result<()> {
    match kind {
        "pause" => {
            signal(vm, *life, Signal::Stop)?;
            vm.run(&format!("sleep {ABSENCE}"))?;
            signal(vm, *life, Signal::Cont)
        }
        "cut" => vm.run(&format!("ip link set near down; sleep {ABSENCE}; ip link set near up")).map(drop),
        _ => {
            signal(vm, *life, if kind == "kill" { Signal::Kill } else { Signal::Term })?;
            gone(vm, *life)?;
            *life += 1;
            serve(vm, *life)
        }
    }
}

/// Waits until every exerciser has got on; one that waits for its device does not.
fn until_all_go_on(vm: &mut Vm) -> Result<()> {
    let before: Vec<u64> = TARGETS.iter().map(|target| target.steps(vm)).collect();
    for (target, before) in TARGETS.iter().zip(before) {
        let next = format!("steps {}", before + STEPS);
        vm.wait_for(target.name, &next).with_context(|| format!("{} gets on", target.name))?;
    }
    Ok(())
}

on_both_kernels!(a_storm, Ext4, Xfs, Fio, Ours);
fn a_storm(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let only = env::var("NBD_VM_DISTURBANCE").ok();
    let count = env::var("NBD_VM_STORMS").ok().and_then(|count| count.parse().ok()).unwrap_or(KINDS.len());
    let mut vm = scene.vm().module("veth").memory_mib(2048).boot()?;
    vm.make_pki()?;
    far_away(&mut vm)?;
    for Target { name, .. } in &TARGETS {
        vm.run(&format!("truncate -s {DISK} /tmp/{name}"))?;
    }
    let mut life = 0;
    serve(&mut vm, life)?;
    for target in &TARGETS {
        target.begin(&mut vm, chance.draw())?;
    }
    for number in 0..count {
        let kind = only.as_deref().unwrap_or(KINDS[number % KINDS.len()]);
        disturb(&mut vm, kind, &mut life).with_context(|| format!("disturbance {number}, {kind}"))?;
        until_all_go_on(&mut vm).with_context(|| format!("after disturbance {number}, {kind}"))?;
    }
    vm.run("touch /run/stop")?;
    for Target { name, on, .. } in &TARGETS {
        let code = vm.wait_exit(name)?;
        let log = vm.log(name);
        ensure!(code == 0, "{name}, seed {}: {log}", chance.seed());
        println!("{name}: {count} disturbances, {}", log.lines().last().unwrap_or_default());
        if matches!(on, On::File(_)) {
            vm.run(&format!("umount /mnt/{name}"))?;
        }
        vm.run(&format!("nbd-attach detach {name}"))?;
        ensure!(vm.wait_exit(&format!("keeper-{name}"))? == 0, "{}", vm.log(&format!("keeper-{name}")));
    }
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    signal(&mut vm, life, Signal::Kill)
}
