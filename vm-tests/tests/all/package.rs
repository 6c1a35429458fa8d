//! Proves that the Debian package does what a system wants of it: installed by dpkg, its table, units, generator and udev
//! rule make systemd attach and mount what `/etc/fstab` names, find a keeper's successor, unmount before it detaches, and
//! nothing is left when it is purged.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use vm_tests::{Fs, NOTHING_ATTACHED, Scene, Signal, Vm, guest, on_both_kernels, paths};

/// systemd is the first process of a process and mount namespace of its own, so that it can be asked to power off.
const BOOT: &str = "exec env container=vm unshare -p -f -m --mount-proc /lib/systemd/systemd --system \
                    --log-target=kmsg --show-status=no";
const TAB: &str = "data nbd://127.0.0.1/data\nparts nbd://127.0.0.1/parts connections=2,noauto\n";
const FSTAB: &str = "/dev/disk/by-id/nbd-data /srv/data ext4 _netdev 0 0\n\
                     /dev/disk/by-id/nbd-parts-part1 /srv/parts ext4 _netdev,noauto 0 0\n";
/// What an initramfs can do of the original, which confines itself.
const UDEVD: &str = "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=notify\n\
                     Sockets=systemd-udevd-control.socket systemd-udevd-kernel.socket\n\
                     ExecStart=/lib/systemd/systemd-udevd\n[Install]\nWantedBy=sysinit.target\n";

/// The package, made by the command that users make it by.
fn package(scene: &Scene) -> Result<(std::path::PathBuf, u64)> {
    let mut deb = guest::cargo();
    deb.args(["run", "--quiet", "--package", "xtask", "--", "deb", "--quick"]);
    let turn = File::create(paths::target().join("deb.lock"))?;
    turn.lock()?;
    let made = deb.output().context("cannot run cargo")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let path = String::from_utf8(made.stdout)?;
    let copy = scene.scratch().join("deb");
    let size = fs::copy(path.trim(), &copy)?;
    // As a disk it consists of whole sectors.
    File::options().append(true).open(&copy)?.set_len(size.next_multiple_of(512))?;
    Ok((copy, size))
}

/// A command where systemd is.
fn inside(vm: &mut Vm, command: &str) -> Result<String> {
    vm.run(&format!("nsenter -t $(cat /run/systemd.pid) -m -p sh -c '{command}'"))
}

/// Starts systemd, as at a boot.
fn boot(vm: &mut Vm, name: &str) -> Result<()> {
    vm.spawn(name, BOOT)?;
    let children = format!("pid=$(cat /run/spawn/{name}.pid); cat /proc/$pid/task/$pid/children");
    vm.run(&format!("until {children} | grep -o '[0-9]*' >/run/systemd.pid; do usleep 50000; done")).map(drop)
}

/// Waits until a command succeeds where systemd is.
fn until(vm: &mut Vm, command: &str) -> Result<()> {
    inside(vm, &format!("for i in $(seq 600); do if {command}; then exit 0; fi; usleep 100000; done; exit 1"))
        .with_context(|| format!("waiting for {command}"))
        .map(drop)
}

fn prepare(vm: &mut Vm, size: u64) -> Result<()> {
    vm.run("echo on >/proc/sys/kernel/printk_devkmsg; mount -t cgroup2 none /sys/fs/cgroup; ln -s /usr/bin/udevadm /lib/systemd/systemd-udevd")?;
    vm.run("mkdir -p /etc/systemd/system /srv/data /srv/parts /var/lib/dpkg/info /var/lib/dpkg/updates")?;
    vm.run(
        "touch /var/lib/dpkg/status; printf '#!/bin/sh\n' >/usr/bin/ldconfig; chmod +x /usr/bin/ldconfig",
    )?;
    vm.run("printf '[Manager]\nDefaultStandardOutput=kmsg\nDefaultTimeoutStopSec=20\n' >/etc/systemd/system.conf")?;
    // Not its first boot, at which it would enable whatever there is.
    vm.run("echo 0123456789abcdef0123456789abcdef >/etc/machine-id")?;
    vm.run(&format!("printf '{}' >/etc/systemd/system/systemd-udevd.service", UDEVD.replace('\n', "\\n")))?;
    let wants = "cd /etc/systemd/system && mkdir -p sysinit.target.wants sockets.target.wants multi-user.target.wants";
    vm.run(&format!("{wants} && ln -s ../systemd-udevd.service sysinit.target.wants/"))?;
    vm.run("cd /etc/systemd/system/sockets.target.wants && for kind in control kernel; do ln -s /lib/systemd/system/systemd-udevd-$kind.socket .; done")?;
    vm.run("cd /etc/systemd/system && ln -s /lib/systemd/system/multi-user.target default.target && ln -s /lib/systemd/system/remote-fs.target multi-user.target.wants/")?;
    vm.run("mv /usr/bin/nbd-attach /tmp/ours-attach; mv /usr/bin/nbd-server /tmp/server")?;
    vm.run(&format!("head -c {size} /dev/vda >/tmp/nbd-stack.deb && /usr/bin/dpkg -i /tmp/nbd-stack.deb"))?;
    vm.run(&format!("printf '{}' >/etc/nbd-attach.tab", TAB.replace('\n', "\\n")))?;
    vm.run(&format!("printf '{}' >/etc/fstab", FSTAB.replace('\n', "\\n"))).map(drop)
}

/// Two disks, one of them with a partition, both with an ext4.
fn disks(vm: &mut Vm) -> Result<()> {
    vm.run("truncate -s 32M /tmp/data /tmp/parts")?;
    // Type 83, from sector 2048, 32768 sectors long.
    let entry = r"\0\0\0\0\203\0\0\0\0\010\0\0\0\200\0\0";
    vm.run(&format!("printf '{entry}' | dd of=/tmp/parts bs=1 seek=446 conv=notrunc 2>/dev/null"))?;
    vm.run(r"printf '\125\252' | dd of=/tmp/parts bs=1 seek=510 conv=notrunc 2>/dev/null")?;
    vm.run(&Fs::Ext4.make("/tmp/data"))?;
    vm.run("mkfs.ext4 -q -F -E offset=1048576 /tmp/parts 16M").map(drop)
}

fn serve(vm: &mut Vm, name: &str) -> Result<()> {
    let exports = "data=/tmp/data parts=/tmp/parts";
    vm.spawn(name, &format!("exec /tmp/server --listen 127.0.0.1:10809 --state-dir /run/state {exports}"))?;
    vm.wait_for(name, "listening").map(drop)
}

/// A keeper that ends has a successor whatever ended it, although the table has a bad line and what was remembered is lost;
/// a device that is in use is not left alone; stopping unmounts first.
fn a_service_that_is_looked_after(vm: &mut Vm) -> Result<()> {
    vm.run("echo 'vault nbd://127.0.0.1/vault tiemout=3' >>/etc/nbd-attach.tab")?;
    inside(vm, "systemctl daemon-reload && systemctl cat nbd-attach@data | grep -q ExecStop=")?;
    ensure!(inside(vm, "ls /run/systemd/generator/remote-fs.target.wants")? == "nbd-attach@data.service");
    for ended in ["KILL", "INT", "HUP"] {
        let before = inside(vm, "systemctl show -P MainPID nbd-attach@data")?;
        vm.run("rm -f /run/nbd-attach/*.json")?;
        inside(vm, &format!("systemctl kill --kill-whom=main -s {ended} nbd-attach@data"))?;
        let same = if ended == "HUP" { "=" } else { "!=" };
        let succeeded = format!("[ \"$(systemctl show -P MainPID nbd-attach@data)\" {same} {before} ]");
        until(
            vm,
            &format!(
                "{succeeded} && systemctl is-active nbd-attach@data && nbd-attach status --json data | grep \"\\\"keeper\\\":[0-9]\""
            ),
        )?;
    }
    // Somebody stands in the directory: it cannot be unmounted.
    inside(vm, "cd /srv/parts && (sleep 1000 & echo $! >/run/stander)")?;
    // The stop fails within the time that a command may take, though the unit would wait for longer.
    let stopped = inside(
        vm,
        "systemctl stop nbd-attach@parts; systemctl show -P ActiveState -P Result nbd-attach@parts",
    )?;
    ensure!(stopped.contains("failed") && !stopped.contains("timeout"), "{stopped}");
    until(
        vm,
        "grep -q /srv/parts /proc/mounts && nbd-attach status --json parts | grep \"\\\"keeper\\\":[0-9]\"",
    )?;
    // The service is what keeps it again, and then it can be stopped.
    inside(vm, "systemctl start nbd-attach@parts && kill -9 $(cat /run/stander)")?;
    until(vm, "systemctl is-active nbd-attach@parts")?;
    inside(
        vm,
        "systemctl stop nbd-attach@parts && ! grep /srv/parts /proc/mounts && ! nbd-attach status parts 2>&1",
    )?;
    inside(vm, "systemctl start nbd-attach@parts srv-parts.mount && grep kept /srv/parts/file")?;
    // A keeper that somebody started by hand hands it over.
    inside(vm, "umount /srv/parts && systemctl stop nbd-attach@parts")?;
    vm.run("nsenter -t $(cat /run/systemd.pid) -m -p nbd-attach attach --keep --background --id parts --connections 2 nbd://127.0.0.1/parts")?;
    inside(vm, "systemctl start nbd-attach@parts srv-parts.mount && grep kept /srv/parts/file").map(drop)
}

on_both_kernels!(a_system_with_the_package, Ext4, Systemd, Dpkg, Ours);
fn a_system_with_the_package(scene: &Scene) -> Result<()> {
    let (deb, size) = package(scene)?;
    let mut vm = scene.vm().disk(deb).memory_mib(2048).boot()?;
    prepare(&mut vm, size)?;
    disks(&mut vm)?;
    serve(&mut vm, "server-1")?;

    boot(&mut vm, "systemd-1")?;
    until(&mut vm, "systemctl is-active remote-fs.target && grep /srv/data /proc/mounts")?;
    ensure!(inside(&mut vm, "readlink -f /dev/disk/by-id/nbd-data")?.starts_with("/dev/nbd"));
    inside(&mut vm, "seq 10000 >/srv/data/numbers")?;
    // The mount brings its device about, and that the service.
    inside(
        &mut vm,
        "systemctl start srv-parts.mount && grep /srv/parts /proc/mounts && echo kept >/srv/parts/file",
    )?;
    let status = inside(&mut vm, "nbd-attach status")?;
    ensure!(status.contains(" data ") && status.contains(" parts ") && status.contains("2/2"), "{status}");

    // A keeper is succeeded, a server comes back, an upgrade disturbs neither.
    inside(&mut vm, "systemctl kill --kill-whom=main -s KILL nbd-attach@data && sleep 1")?;
    until(&mut vm, "nbd-attach status --json data | grep \"\\\"keeper\\\":[0-9]\"")?;
    vm.kill("server-1", Signal::Kill)?;
    vm.wait_exit("server-1")?;
    serve(&mut vm, "server-2")?;
    inside(&mut vm, "sync; seq 20000 >/srv/data/numbers; sync")?;
    inside(
        &mut vm,
        "/usr/bin/dpkg -i /tmp/nbd-stack.deb && systemctl is-active nbd-attach@data nbd-attach@parts",
    )?;
    let stuck = vm.try_run("nbd-attach detach data")?;
    ensure!(stuck.code == 4, "it is mounted: {stuck:?}");

    a_service_that_is_looked_after(&mut vm)?;

    // What is mounted is unmounted before its device goes.
    inside(&mut vm, "systemctl poweroff")?;
    vm.wait_exit("systemd-1")?;
    ensure!(vm.run("nbd-attach status --json")? == NOTHING_ATTACHED, "{}", vm.console());
    vm.run("dumpe2fs -h /tmp/data 2>/dev/null | grep -q 'state: *clean' && e2fsck -fn /tmp/data")?;

    boot(&mut vm, "systemd-2")?;
    until(&mut vm, "grep /srv/data /proc/mounts")?;
    inside(&mut vm, "seq 20000 | cmp - /srv/data/numbers && umount /srv/data")?;
    inside(&mut vm, "/usr/bin/dpkg --purge nbd-stack")?;
    let status = vm.run("/tmp/ours-attach status --json")?;
    ensure!(status == NOTHING_ATTACHED, "{status}");
    let left = vm.run(
        "find / -xdev -name '*nbd-attach*' -not -path '/tmp/*' -not -path '/proc/*' -not -path '/sys/*'",
    )?;
    ensure!(left.is_empty(), "{left}");
    vm.kill("systemd-2", Signal::Kill)?;
    ensure!(!vm.console().contains("I/O error"), "{}", vm.console());
    Ok(())
}
