//! What encryption costs a device: none of it, by the kernel (`nbd-attach nbds://`), and by the process that nbd-client
//! puts between the driver and the server. All in one guest, in turn, with the same cipher, which is why the server is
//! qemu-nbd: it can be told which to take.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{Kit, PKI, Scene, Series, Vm};

use super::figures::Spread;
use super::fio;
use crate::install;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load each time.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

/// By GnuTLS's names, and where each server listens.
const CIPHERS: [(&str, u16); 2] = [("AES-256-GCM", 10810), ("CHACHA20-POLY1305", 10811)];
const CLEAR: u16 = 10809;
const SUBJECTS: [&str; 3] = ["plain", "kernel", "proxy"];
/// Their names, and fio's words: pattern, block, depth.
const LOADS: [(&str, &str); 3] = [
    ("1 MiB reads", "--rw=read --bs=1m --iodepth=4"),
    ("1 MiB writes", "--rw=write --bs=1m --iodepth=4"),
    ("4 KiB reads", "--rw=randread --bs=4k --iodepth=16"),
];
/// The kernel's clock ticks in `/proc/stat`, per second.
const TICKS: f64 = 100.0;

/// One measurement.
struct Row {
    /// MiB per second.
    rate: f64,
    /// Milliseconds of the whole guest's processors per MiB.
    cpu: f64,
}

/// `cargo xtask bench tls`
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "there is nothing to measure");
    install::for_bench_tls()?;
    vm_tests::guest::as_released();
    let kits = [Kit::Ours, Kit::Fio, Kit::NbdClient, Kit::QemuNbd];
    let scene = Scene::set("bench-tls", Series::V6_12, &kits)?;
    let mut vm = scene.vm().memory_mib(1536).boot()?;
    vm.make_pki()?;
    // What udev loads for the processor of a real machine.
    vm.run("modprobe -a nbd aesni_intel chacha_x86_64 poly1305_x86_64")?;
    serve(&mut vm)?;
    for (cipher, port) in CIPHERS {
        for (load, words) in LOADS {
            let name = format!("{load}, {cipher}");
            let mut rows: [Vec<Row>; 3] = Default::default();
            for round in 0..args.rounds {
                eprintln!("{name}: round {} of {}", round + 1, args.rounds);
                for turn in 0..SUBJECTS.len() {
                    let subject = (round + turn) % SUBJECTS.len();
                    let time = Duration::from_secs(args.seconds);
                    let row = measure(&mut vm, SUBJECTS[subject], port, words, time);
                    rows[subject].push(row.with_context(|| format!("{}, {name}", SUBJECTS[subject]))?);
                }
            }
            print(&name, &rows);
        }
    }
    vm.power_cut();
    scene.clear()
}

fn serve(vm: &mut Vm) -> Result<()> {
    vm.run("dd if=/dev/urandom of=/tmp/image bs=1M count=64")?;
    let image = |port: u16| format!("qemu-nbd -t -e 8 -f raw -x '' -p {port} /tmp/image-{port}");
    vm.run(&format!("cp /tmp/image /tmp/image-{CLEAR}"))?;
    vm.spawn("clear", &format!("exec {}", image(CLEAR)))?;
    for (cipher, port) in CIPHERS {
        vm.run(&format!("cp /tmp/image /tmp/image-{port}"))?;
        let creds = format!("tls-creds-x509,id=tls,dir={PKI},endpoint=server,verify-peer=no");
        let object = format!("--object '{creds},priority=NORMAL:-CIPHER-ALL:+{cipher}' --tls-creds tls");
        vm.spawn(cipher, &format!("exec {} {object}", image(port)))?;
    }
    for port in [CLEAR, CIPHERS[0].1, CIPHERS[1].1] {
        vm.run(&format!("until nc 127.0.0.1 {port} </dev/null >/dev/null; do usleep 10000; done"))?;
    }
    Ok(())
}

fn measure(vm: &mut Vm, subject: &str, port: u16, words: &str, time: Duration) -> Result<Row> {
    match subject {
        "plain" => vm.run(&format!("nbd-attach attach --device nbd0 nbd://127.0.0.1:{CLEAR}"))?,
        "kernel" => {
            let uri = format!("nbds://localhost:{port} --tls-certificates {PKI}");
            vm.run(&format!("nbd-attach attach --device nbd0 {uri}"))?
        }
        _ => {
            let trust = format!("-x -A {PKI}/ca-cert.pem -H localhost");
            vm.run(&format!("nbd-client -N '' 127.0.0.1 {port} /dev/nbd0 {trust}"))?
        }
    };
    // The same requests for all: nbd-attach makes them larger.
    vm.run("echo 512 >/sys/block/nbd0/queue/max_sectors_kb")?;
    let load = format!(
        "fio --name=load --filename=/dev/nbd0 --ioengine=libaio --direct=1 {words} --randrepeat=1 --time_based \
         --percentile_list=50:99 --runtime={} --output-format=json",
        time.as_secs().max(1)
    );
    let before = busy(vm)?;
    let told = fio::told_in(&vm.run(&load)?)?;
    let used = busy(vm)? - before;
    vm.run("nbd-client -d /dev/nbd0; until [ ! -e /sys/block/nbd0/pid ]; do usleep 10000; done")?;
    let mib = told.bytes_per_second * time.as_secs_f64() / f64::from(1 << 20);
    ensure!(mib > 0.0, "fio did nothing");
    Ok(Row { rate: told.bytes_per_second / f64::from(1 << 20), cpu: used / TICKS * 1e3 / mib })
}

/// Ticks that the guest's processors were not idle.
fn busy(vm: &mut Vm) -> Result<f64> {
    let line = vm.run("head -n 1 /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map_while(|ticks| ticks.parse().ok()).collect();
    ensure!(ticks.len() > 6, "{line}");
    // user, nice, system, then idle and waiting, then interrupts.
    Ok(ticks[..3].iter().chain(&ticks[5..7]).sum())
}

fn print(name: &str, rows: &[Vec<Row>; 3]) {
    let median = |numbers: Vec<f64>| Spread::of(numbers).map_or(0.0, |spread| spread.median);
    for (subject, rows) in SUBJECTS.iter().zip(rows) {
        let of = |value: fn(&Row) -> f64| median(rows.iter().map(value).collect());
        println!(
            "{name:32} {subject:>8} {:>8.1} MiB/s {:>8.2} CPU ms per MiB",
            of(|row| row.rate),
            of(|row| row.cpu)
        );
    }
    let [_, kernel, proxy] = rows;
    let ratio = |value: fn(&Row) -> f64| {
        let pairs = kernel.iter().zip(proxy).map(|(one, other)| (Some(value(one)), Some(value(other))));
        let Spread { median, min, max } = Spread::of_ratios(pairs)?;
        Some(format!("{median:.2} ({min:.2} to {max:.2})"))
    };
    let told = |value| ratio(value).unwrap_or_default();
    println!(
        "{name:32} kernel in units of proxy: rate {}, CPU {}",
        told(|row| row.rate),
        told(|row| row.cpu)
    );
}
