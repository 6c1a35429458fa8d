//! What a server looks like through the kernel's driver: `/dev/nbd0` attached to each of them in turn, on the
//! same guest, with fio inside. Server, file and load are all in the guest, which is emulated: a processor that is
//! thirty times slower makes the kernel's part large, and what is left of a difference is the server's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{Kit, Scene, Series, Signal, Vm};

use super::super::fio;
use super::report::{Report, Row};

/// Those of which the guest has a copy.
const SUBJECTS: [&str; 3] = ["ours", "nbdkit", "qemu-nbd"];

/// Their names and fio's words for them.
const LOADS: [(&str, &str, &str); 4] = [
    ("nbd0-read-1", "randread", "1"),
    ("nbd0-read-16", "randread", "16"),
    ("nbd0-write-1", "randwrite", "1"),
    ("nbd0-write-16", "randwrite", "16"),
];
const IMAGE: &str = "/tmp/image";
const SOCKET: &str = "/run/peer.sock";
/// The kernel's clock ticks in `/proc`, per second.
const TICKS: f64 = 100.0;

/// Measures all of them.
pub(super) fn run(rounds: usize, time: Duration, report: &mut Report) -> Result<()> {
    let kits = [Kit::Ours, Kit::Fio, Kit::Nbdkit, Kit::QemuNbd];
    let scene = Scene::set("bench-peers", Series::V6_12, &kits)?;
    let mut vm = scene.vm().memory_mib(1024).boot()?;
    vm.run(&format!("dd if=/dev/urandom of={IMAGE} bs=1M count=64"))?;
    for load in &LOADS {
        report.begin("/dev/nbd0 in an emulated machine, Tmpfs, Unix", load.0, "requests/s", &SUBJECTS);
        for round in 0..rounds {
            eprintln!("{}: round {} of {rounds}", load.0, round + 1);
            for turn in 0..SUBJECTS.len() {
                let subject = SUBJECTS[(round + turn) % SUBJECTS.len()];
                let row = measure(&mut vm, subject, load, time);
                report.add(subject, row.with_context(|| format!("{subject}, {}", load.0))?);
            }
        }
    }
    vm.power_cut();
    scene.clear()
}

fn measure(vm: &mut Vm, subject: &'static str, load: &(&str, &str, &str), time: Duration) -> Result<Row> {
    let server = match subject {
        "ours" => format!("nbd-server --unix {SOCKET} {IMAGE}"),
        "nbdkit" => format!("nbdkit --foreground --unix {SOCKET} file {IMAGE}"),
        _ => format!("qemu-nbd --persistent --format=raw --cache=writeback --socket={SOCKET} {IMAGE}"),
    };
    vm.run(&format!("rm -f {SOCKET}"))?;
    vm.spawn(subject, &format!("exec {server}"))?;
    vm.run(&format!("until [ -S {SOCKET} ]; do sleep 0.05; done"))?;
    let device = vm.attach(&format!("nbd+unix:///?socket={SOCKET}"), "")?;
    let (_, pattern, depth) = load;
    let words = format!(
        "fio --name=load --filename={device} --ioengine=libaio --direct=1 --bs=4k --rw={pattern} --iodepth={depth} \
         --randrepeat=1 --time_based --percentile_list=50:99 --runtime={} --output-format=json",
        time.as_secs().max(1)
    );
    let before = ticks(vm, subject)?;
    let told = fio::told_in(&vm.run(&words)?)?;
    let used = ticks(vm, subject)? - before;
    let peak = vm.run(&format!("grep VmHWM /proc/$(cat /run/spawn/{subject}.pid)/status | tr -dc 0-9"))?;
    vm.run(&format!("nbd-attach detach {device}"))?;
    vm.kill(subject, Signal::Kill)?;
    vm.wait_exit(subject)?;
    ensure!(told.requests > 0.0, "fio did nothing");
    Ok(Row {
        rate: told.requests_per_second,
        p50_us: told.latency.p50 * 1e6,
        p99_us: told.latency.p99 * 1e6,
        cpu_us: used / TICKS * 1e6 / told.requests,
        memory_mib: peak.trim().parse::<f64>()? / 1024.0,
    })
}

/// Ticks of processor time that a spawned server has used.
fn ticks(vm: &mut Vm, name: &str) -> Result<f64> {
    let stat = vm.run(&format!("cat /proc/$(cat /run/spawn/{name}.pid)/stat"))?;
    let times = stat.rsplit_once(')').context("a process has a name in brackets")?.1;
    times.split_whitespace().skip(11).take(2).map(|ticks| Ok(ticks.parse::<f64>()?)).sum()
}
