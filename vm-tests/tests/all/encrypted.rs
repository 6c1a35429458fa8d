//! Proves that the kernel itself encrypts what goes over an `nbds://` device: its counters say so, every server that
//! speaks TLS is understood by every cipher, what was promised survives the server's death, and what cannot be had is
//! said in words.

use anyhow::{Context, Result, ensure};
use vm_tests::promise::Promises;
use vm_tests::{
    Chance, DISK, Fs, NOTHING_ATTACHED, PKI, Scene, Signal, Vm, on_both_kernels, on_every_kernel,
};

/// The clock of the certificates must not be before their time.
fn ready(scene: &Scene) -> Result<Vm> {
    let mut vm = scene.vm().module("tcp_diag").boot()?;
    vm.make_pki()?;
    Ok(vm)
}

fn serve(vm: &mut Vm, name: &str, port: u16, more: &str) -> Result<()> {
    let keys = format!("--tls-cert {PKI}/server-cert.pem --tls-key {PKI}/server-key.pem");
    vm.spawn(
        name,
        &format!("exec nbd-server --listen 127.0.0.1:{port} {keys} --state-dir /run/state {more}"),
    )?;
    vm.wait_for(name, "nbds:").map(drop)
}

fn uri(port: u16) -> String {
    format!("nbds://localhost:{port}/?tls-certificates={PKI}")
}

/// Sessions that the kernel encrypts now.
fn sessions(vm: &mut Vm) -> Result<(u64, u64)> {
    let mut count = |name: &str| -> Result<u64> {
        Ok(vm.run(&format!("grep -w {name} /proc/net/tls_stat | grep -o '[0-9]*$'"))?.parse()?)
    };
    Ok((count("TlsCurrTxSw")?, count("TlsCurrRxSw")?))
}

on_every_kernel!(the_kernel_encrypts, Nbdkit, QemuNbd, Ours);
/// By each cipher, to each server: what is written is what the server has.
fn the_kernel_encrypts(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    vm.run("for file in ours nbdkit qemu; do truncate -s 16M /tmp/$file; done")?;
    vm.run("modprobe tls; dd if=/dev/urandom of=/tmp/data bs=1M count=8")?;
    serve(&mut vm, "ours", 10801, "/tmp/ours")?;
    let priorities = [
        ("NORMAL", "TLS13_"),
        ("NORMAL:-CIPHER-ALL:+AES-128-GCM", "TLS13_AES_128_GCM"),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-GCM", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM"),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20"),
    ];
    let mut subjects = vec![(10801, "/tmp/ours", "TLS13_CHACHA20_POLY1305", "ours".to_owned())];
    let creds = format!("tls-creds-x509,id=tls,dir={PKI},endpoint=server,verify-peer=no");
    for (port, (priority, cipher)) in (10802..).zip(priorities) {
        let name = format!("qemu-{port}");
        let object = format!("--object {creds},priority={priority} --tls-creds tls");
        vm.spawn(&name, &format!("exec qemu-nbd -t -e 8 -p {port} {object} -f raw -x '' /tmp/qemu"))?;
        subjects.push((port, "/tmp/qemu", cipher, name));
    }
    let nbdkit = format!("nbdkit --foreground --tls=require --tls-certificates={PKI} -i 127.0.0.1 -p 10899");
    vm.spawn("nbdkit", &format!("exec {nbdkit} file /tmp/nbdkit"))?;
    subjects.push((10899, "/tmp/nbdkit", "TLS13_", "nbdkit".to_owned()));
    for (port, file, cipher, name) in subjects {
        vm.run(&format!("until nc 127.0.0.1 {port} </dev/null >/dev/null; do usleep 10000; done"))?;
        let before = sessions(&mut vm)?;
        let device = vm.attach(&uri(port), "")?;
        let after = sessions(&mut vm)?;
        ensure!(after == (before.0 + 1, before.1 + 1), "{name}: {before:?}, {after:?}");
        let status = vm.run(&format!("nbd-attach status --json {device}"))?;
        ensure!(status.contains(&format!(r#""cipher":"{cipher}"#)), "{name}: {status}");
        vm.run(&format!("dd if=/tmp/data of={device} bs=1M conv=fsync 2>&1"))?;
        vm.run("echo 3 >/proc/sys/vm/drop_caches")?;
        vm.run(&format!(
            "head -c 8388608 {device} | cmp - /tmp/data && head -c 8388608 {file} | cmp - /tmp/data"
        ))?;
        vm.run(&format!("nbd-attach detach {device}"))?;
        let end = sessions(&mut vm)?;
        ensure!(end == before, "{name}: {before:?}, {end:?}");
        vm.kill(&name, Signal::Kill)?;
    }
    let errors = vm.run("grep -E 'Error|NoCrypto' /proc/net/tls_stat | grep -vw 0 || true")?;
    ensure!(errors.is_empty(), "{errors}");
    Ok(())
}

on_every_kernel!(an_encrypted_device_outlives_its_server, Ext4, Ours);
/// Killed again and again, and given new keys all the time, it keeps what it promised.
fn an_encrypted_device_outlives_its_server(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let mut vm = ready(scene)?;
    vm.run(&format!("truncate -s {DISK} /tmp/disk"))?;
    serve(&mut vm, "server-0", 10809, "/tmp/disk")?;
    let options = "--keep --json --timeout 2 --connections 2 --renew-after 300 --tls-cipher aes-gcm";
    vm.spawn("keeper", &format!("exec nbd-attach attach {options} '{}'", uri(10809)))?;
    let line = vm.wait_for("keeper", r#""device":"#)?;
    let device = line.split('"').find(|word| word.starts_with("/dev/nbd")).context("no device")?.to_owned();
    let status = vm.run("nbd-attach status --json")?;
    ensure!(status.contains(r#""cipher":"TLS13_AES_256_GCM"#), "{status}");
    vm.make_fs(Fs::Ext4, &device, "/mnt")?;
    vm.promise("work", "/mnt", 2, chance.draw())?;
    let mut promised = 0;
    for n in 1..=3 {
        promised += chance.within(10..30);
        vm.wait_for_promises("work", promised)?;
        vm.kill(&format!("server-{}", n - 1), Signal::Kill)?;
        serve(&mut vm, &format!("server-{n}"), 10809, "/tmp/disk")?;
        promised = u64::try_from(vm.log("work").matches(" promised ").count())?;
    }
    vm.wait_for_promises("work", promised + 20)?;
    vm.kill("work", Signal::Kill)?;
    vm.wait_exit("work")?;
    ensure!(!vm.log("work").contains("stopped: "), "a request failed: {}", vm.log("work"));
    let renewed = vm.log("keeper").matches(r#""event":"renewing""#).count();
    let back = vm.log("keeper").matches(r#""event":"reconnected""#).count();
    ensure!(renewed >= 2 && back > renewed, "{renewed} renewals, {back} reconnections: {}", vm.log("keeper"));
    let mut promises = Promises::default();
    promises.hear(&vm.log("work"));
    vm.run(&format!("umount /mnt && mount {device} /mnt"))?;
    vm.verify("/mnt", &promises)?.kept(&format!("seed {}", chance.seed()))?;
    vm.run(&format!("umount /mnt && nbd-attach detach {device}"))?;
    ensure!(vm.wait_exit("keeper")? == 0, "{}", vm.log("keeper"));
    ensure!(!vm.console().contains("I/O error"), "a request failed:\n{}", vm.console());
    Ok(())
}

on_both_kernels!(worn_keys_of_an_earlier_keeper_are_renewed, Ours);
/// Its successor has none of the sockets: it counts what the device has sent, and ends them by their addresses.
fn worn_keys_of_an_earlier_keeper_are_renewed(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    vm.run("truncate -s 16M /tmp/disk")?;
    serve(&mut vm, "server", 10809, "/tmp/disk")?;
    let options = "--keep --json --id data --timeout 2 --connections 2 --tls-cipher aes-gcm";
    let keep = |renew: &str| format!("exec nbd-attach attach {options} {renew} '{}'", uri(10809));
    vm.spawn("first", &keep(""))?;
    vm.wait_for("first", r#""event":"kept""#)?;
    vm.run("dd if=/dev/nbd0 of=/dev/null bs=4k count=200 iflag=direct")?;
    vm.end("first")?;
    vm.spawn("second", &keep("--renew-after 100"))?;
    for connection in 1..=2 {
        vm.wait_for("second", &format!(r#""event":"renewing","connection":{connection}"#))?;
        vm.wait_for("second", &format!(r#""event":"reconnected","connection":{connection}"#))?;
    }
    vm.run("dd if=/dev/nbd0 of=/dev/null bs=4k count=20 iflag=direct && nbd-attach detach data")?;
    ensure!(vm.wait_exit("second")? == 0, "{}", vm.log("second"));
    Ok(())
}

on_both_kernels!(what_cannot_be_encrypted, Ours);
/// There is no device then, and a sentence that says why.
fn what_cannot_be_encrypted(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    vm.run("truncate -s 1M /tmp/disk; mkdir /run/other; cp /run/pki/client-cert.pem /run/other/ca-cert.pem")?;
    serve(&mut vm, "server", 10809, "/tmp/disk")?;
    let mut refused = |command: &str, part: &str| -> Result<()> {
        let finished = vm.try_run(command)?;
        ensure!(finished.code == 6 && finished.output.contains(part), "{command}: {finished:?}");
        ensure!(vm.run("nbd-attach status --json")? == NOTHING_ATTACHED);
        Ok(())
    };
    refused("nbd-attach attach nbd://localhost", "TLS")?;
    refused(
        "nbd-attach attach nbds://localhost --tls-certificates /run/other",
        "TLS with the server failed",
    )?;
    refused(
        &format!("nbd-attach attach nbds://localhost --tls-hostname elsewhere --tls-certificates {PKI}"),
        "elsewhere",
    )?;
    let hide = "mv $(find /lib/modules/ -name 'chacha20poly1305.ko*') /tmp/hidden.ko";
    refused(&format!("{hide}; nbd-attach attach '{}'", uri(10809)), "cannot encrypt by TLS13_CHACHA20")?;
    let hide = "rmmod tls; mv $(find /lib/modules/ -name 'tls.ko*') /tmp/hidden2.ko";
    refused(&format!("{hide}; nbd-attach attach '{}'", uri(10809)), "modprobe tls")
}
