//! Proves that devices under `--keep` come through whatever happens to their servers, the network and their keepers. In each
//! round the servers meet one fate: they are killed, ended, paused, cut off, replaced for a while, or moved to another
//! address. With it comes one change around them: the keepers are killed, their logs are closed or read by nobody, the place
//! of their records is full, certificates are renewed, or the disks grow. Meanwhile ext4, xfs and bare devices are exercised
//! and verified, with one connection and with four, in the clear and encrypted. No operation fails, no byte is wrong, and
//! after each round `status` says that all is well.
//!
//! An ordinary run takes three rounds on each kernel, such that 6.1 and 6.12 together see every fate and every change. A
//! hundred rounds, drawn at random: `NBD_VM_STORMS=100 cargo test -p vm-tests a_storm`. `NBD_VM_ROUND=kill,grow` says what
//! all of them are.

use std::env;

use anyhow::{Context, Result, bail, ensure};
use vm_tests::{Chance, DISK, Fs, PKI, Scene, Series, Signal, Vm, on_every_kernel};

/// Seconds after which a request is sent again.
const TIMEOUT: u64 = 2;
/// Seconds that a pause or a cut lasts: longer than that.
const ABSENCE: u64 = 4;
/// What becomes of the servers.
const FATES: [&str; 6] = ["kill", "replace", "end", "cut", "move", "pause"];
/// What changes around them. Of these, the first do not need other servers.
const CHANGES: [&str; 6] = ["keeper", "log", "full", "none", "rotate", "grow"];
const WITH_ANY_SERVER: usize = 4;
/// Rounds of ordinary runs: of these, each kernel has every second one.
const ORDINARY: [(&str, &str); 6] = [
    ("kill", "grow"),
    ("pause", "log"),
    ("move", "full"),
    ("cut", "keeper"),
    ("end", "none"),
    ("replace", "rotate"),
];
/// What a disk grows by.
const GROWTH: u64 = 4 << 20;
/// Bytes of a target that are exercised.
const SIZE: u64 = 6 << 20;
const NEAR: &str = "10.1.0.1/24";
/// Where the servers can be; their name leads to one of them.
const FAR: [&str; 2] = ["10.1.0.2", "10.1.0.3"];
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

/// From Linux 6.18 on the kernel's TLS loses count of the memory of xfs's log, so that one is in the clear.
const TARGETS: [Target; 5] = [
    Target { name: "ext4", server: 1, on: On::File(Fs::Ext4), connections: 1 },
    Target { name: "xfs", server: 0, on: On::File(Fs::Xfs), connections: 4 },
    Target { name: "bare", server: 0, on: On::Device, connections: 4 },
    Target { name: "vault", server: 1, on: On::Device, connections: 1 },
    Target { name: "fio", server: 1, on: On::Fio, connections: 4 },
];
/// Each round of fio counts for as much as is waited for after a disturbance.
const STEPS: u64 = 100;

impl Target {
    /// Attaches it, or takes it over from an earlier keeper.
    fn keep(&self, vm: &mut Vm, life: usize) -> Result<()> {
        let Target { name, server, connections, .. } = self;
        let port = SERVERS[*server].1;
        let scheme = if *server == 0 { "nbd" } else { "nbds" };
        let tls = format!("--tls-certificates {PKI} --tls-hostname localhost");
        let tls = if *server == 0 { "" } else { &tls };
        let waits = "--growth-interval 1";
        let options =
            format!("--keep {waits} --id {name} --timeout {TIMEOUT} --connections {connections} {tls}");
        // Its log goes through a reader of its own, which can be stopped.
        let log = format!("/run/log-{name}");
        let reader = format!("rm -f {log}; mkfifo {log}; cat {log} & echo $! >{log}.pid");
        vm.spawn(
            &format!("keeper-{name}-{life}"),
            &format!("{reader}; exec nbd-attach attach {options} {scheme}://far:{port}/{name} 2>{log}"),
        )
    }

    /// Attaches it, and starts to exercise it.
    fn begin(&self, vm: &mut Vm, seed: u64) -> Result<()> {
        let Target { name, on, .. } = self;
        self.keep(vm, 0)?;
        let line = vm.wait_for(&format!("keeper-{name}-0"), "/dev/nbd")?;
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
    let [first, second] = FAR;
    let there = format!(
        "ip addr add {first}/24 dev veth0 && ip addr add {second}/24 dev veth0 && ip link set veth0 up && ip link set lo up"
    );
    vm.run(&format!("nsenter -t $(cat /run/spawn/network.pid) -n sh -c '{there}'"))?;
    name_leads_to(vm, 0)
}

/// Which of the addresses the servers' name leads to.
fn name_leads_to(vm: &mut Vm, address: usize) -> Result<()> {
    vm.run(&format!("printf '127.0.0.1 localhost\\n{} far\\n' >/etc/hosts", FAR[address])).map(drop)
}

/// How things are.
#[derive(Default)]
struct State {
    /// Servers that there were.
    life: usize,
    /// Keepers of each target that there were.
    keepers: usize,
    /// Where the servers are.
    address: usize,
    /// How often the disks have grown.
    grown: u64,
}

/// Starts the servers, on the disks or on others of the same names.
fn serve(vm: &mut Vm, state: &State, disks: &str) -> Result<()> {
    for (server, (name, port, keys)) in SERVERS.iter().enumerate() {
        let exports = TARGETS.iter().filter(|target| target.server == server);
        let exports: Vec<String> = exports.map(|target| format!("{0}={disks}/{0}", target.name)).collect();
        let words = format!(
            "--listen {}:{port} {keys} --state-dir /run/state-{name} {}",
            FAR[state.address],
            exports.join(" ")
        );
        let server = format!("{name}-{}", state.life);
        vm.spawn(&server, &format!("exec nsenter -t $(cat /run/spawn/network.pid) -n nbd-server {words}"))?;
        vm.wait_for(&server, "listening")?;
    }
    Ok(())
}

fn signal(vm: &mut Vm, state: &State, signal: Signal) -> Result<()> {
    SERVERS.iter().try_for_each(|(name, ..)| vm.kill(&format!("{name}-{}", state.life), signal))
}

/// Ends the servers; the next ones have other names.
fn end(vm: &mut Vm, state: &mut State, how: Signal) -> Result<()> {
    signal(vm, state, how)?;
    SERVERS.iter().try_for_each(|(name, ..)| vm.wait_exit(&format!("{name}-{}", state.life)).map(drop))?;
    state.life += 1;
    Ok(())
}

/// What the next round is.
fn draw(chance: &mut Chance, only: Option<&str>) -> Result<(&'static str, &'static str)> {
    let pick = |of: &[&'static str], word: &str| {
        of.iter().copied().find(|known| *known == word).with_context(|| format!("no round has {word:?}"))
    };
    if let Some((fate, change)) = only.and_then(|words| words.split_once(',')) {
        return Ok((pick(&FATES, fate)?, pick(&CHANGES, change)?));
    }
    let mut index = |below: usize| anyhow::Ok(usize::try_from(chance.within(0..below as u64))?);
    let fate = FATES[index(FATES.len())?];
    let changes = if stays(fate) { &CHANGES[..WITH_ANY_SERVER] } else { &CHANGES[..] };
    Ok((fate, changes[index(changes.len())?]))
}

/// Whether the same servers go on afterwards: those know neither new certificates nor larger disks.
fn stays(fate: &str) -> bool {
    matches!(fate, "pause" | "cut")
}

/// What takes the servers away.
fn take_away(vm: &mut Vm, fate: &str, state: &mut State) -> Result<()> {
    match fate {
        "pause" => signal(vm, state, Signal::Stop),
        "cut" => vm.run("ip link set near down").map(drop),
        "end" => end(vm, state, Signal::Term),
        "kill" | "move" | "replace" => end(vm, state, Signal::Kill),
        other => bail!("nothing is {other:?}"),
    }
}

/// What changes while they are away.
fn change(vm: &mut Vm, what: &str, state: &mut State) -> Result<()> {
    match what {
        "keeper" => {
            vm.run("kill -9 $(pidof nbd-attach)")?;
            // A stopped one would read again at its end.
            close_logs(vm)?;
            state.keepers += 1;
            TARGETS.iter().try_for_each(|target| target.keep(vm, state.keepers))
        }
        "log" => TARGETS.iter().enumerate().try_for_each(|(number, Target { name, .. })| {
            let how = if number % 2 == 0 { Signal::Kill } else { Signal::Stop };
            vm.run(&format!("kill -{how} $(cat /run/log-{name}.pid) || true")).map(drop)
        }),
        "full" => vm.run("dd if=/dev/zero of=/run/nbd-attach/fill bs=4k 2>/dev/null; true").map(drop),
        "rotate" => vm.make_pki(),
        "grow" => {
            state.grown += 1;
            let size = DISK + state.grown * GROWTH;
            TARGETS.iter().try_for_each(|Target { name, .. }| {
                vm.run(&format!("truncate -s {size} /tmp/{name}")).map(drop)
            })
        }
        "none" => Ok(()),
        other => bail!("nothing is {other:?}"),
    }
}

/// What brings the servers back.
fn bring_back(vm: &mut Vm, fate: &str, state: &mut State) -> Result<()> {
    match fate {
        "pause" => {
            vm.run(&format!("sleep {ABSENCE}"))?;
            return signal(vm, state, Signal::Cont);
        }
        "cut" => return vm.run(&format!("sleep {ABSENCE}; ip link set near up")).map(drop),
        "replace" => {
            // Other disks of the same size.
            let size = DISK + state.grown * GROWTH;
            vm.run(&format!(
                "mkdir /tmp/old; for disk in ext4 xfs bare vault fio; do truncate -s {size} /tmp/old/$disk; done"
            ))?;
            serve(vm, state, "/tmp/old")?;
            vm.run(&format!("sleep {ABSENCE}"))?;
            end(vm, state, Signal::Kill)?;
            vm.run("rm -r /tmp/old")?;
        }
        "move" => {
            state.address = 1 - state.address;
            name_leads_to(vm, state.address)?;
        }
        _ => {}
    }
    serve(vm, state, "/tmp")
}

/// Ends whoever reads the keepers' logs.
fn close_logs(vm: &mut Vm) -> Result<()> {
    vm.run("kill -9 $(cat /run/log-*.pid) 2>/dev/null; true").map(drop)
}

/// Waits until `status` says that every device is well, and is as large as its disk.
fn until_all_is_well(vm: &mut Vm, state: &State) -> Result<()> {
    let (count, size) = (TARGETS.len(), DISK + state.grown * GROWTH);
    let counted = |what: &str| format!("[ $(echo \"$seen\" | grep -o '{what}' | wc -l) = {count} ]");
    let well = [
        counted("\"state\":\"up\""),
        counted("\"keeper\":[0-9]"),
        counted("\"trouble\":null"),
        counted(&format!("\"size_bytes\":{size}")),
    ];
    let look = format!("seen=$(nbd-attach status --json); if {}; then exit 0; fi", well.join(" && "));
    vm.run(&format!("for i in $(seq 200); do {look}; usleep 300000; done; nbd-attach status; exit 1"))
        .map(drop)
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

/// The rounds of a run.
fn rounds(scene: &Scene, chance: &mut Chance) -> Result<Vec<(&'static str, &'static str)>> {
    let only = env::var("NBD_VM_ROUND").ok();
    let count = env::var("NBD_VM_STORMS").ok().map(|count| count.parse::<usize>()).transpose()?;
    match (count, &only) {
        (None, None) => {
            let first = usize::from(scene.series() == Series::V6_12);
            Ok(ORDINARY.into_iter().skip(first).step_by(2).collect())
        }
        (count, only) => (0..count.unwrap_or(1)).map(|_| draw(chance, only.as_deref())).collect(),
    }
}

on_every_kernel!(a_storm, Ext4, Xfs, Fio, Ours);
fn a_storm(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let rounds = rounds(scene, &mut chance)?;
    let mut vm = scene.vm().module("veth").memory_mib(2048).boot()?;
    vm.make_pki()?;
    far_away(&mut vm)?;
    for Target { name, .. } in &TARGETS {
        vm.run(&format!("truncate -s {DISK} /tmp/{name}"))?;
    }
    // A place for records that can be filled without harm to the guest.
    vm.run("mkdir /run/nbd-attach && mount -t tmpfs -o size=256k none /run/nbd-attach")?;
    let mut state = State::default();
    serve(&mut vm, &state, "/tmp")?;
    for target in &TARGETS {
        target.begin(&mut vm, chance.draw())?;
    }
    for (number, (fate, around)) in rounds.iter().enumerate() {
        let mut round = || {
            take_away(&mut vm, fate, &mut state)?;
            change(&mut vm, around, &mut state)?;
            bring_back(&mut vm, fate, &mut state)?;
            until_all_go_on(&mut vm)?;
            vm.run("rm -f /run/nbd-attach/fill")?;
            until_all_is_well(&mut vm, &state)
        };
        round().with_context(|| format!("round {number}, {fate} and {around}, seed {}", chance.seed()))?;
    }
    vm.run("touch /run/stop")?;
    for Target { name, on, .. } in &TARGETS {
        let code = vm.wait_exit(name)?;
        let log = vm.log(name);
        ensure!(code == 0, "{name}, seed {}: {log}", chance.seed());
        println!("{name}: {} rounds, {}", rounds.len(), log.lines().last().unwrap_or_default());
        if matches!(on, On::File(_)) {
            vm.run(&format!("umount /mnt/{name}"))?;
        }
        vm.run(&format!("nbd-attach detach {name}"))?;
    }
    close_logs(&mut vm)?;
    for Target { name, .. } in &TARGETS {
        ensure!(vm.wait_exit(&format!("keeper-{name}-{0}", state.keepers))? == 0, "{name} is not detached");
    }
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    signal(&mut vm, &state, Signal::Kill)
}
