//! Proves the README's table of what each mode can lose, cell by cell: acknowledged writes, flushed and not, meet each
//! kind of crash, and what is gone afterwards must be what the table says, neither more nor less.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use vm_tests::{Builder, HOST_PORT, HostServer, Scene, Signal, Vm, on_both_kernels, paths};

const MODES: [&str; 4] = ["writethrough", "writeback", "early-ack", "unsafe"];
/// Bytes of each disk.
const SIZE: u64 = 16 << 20;
/// Bytes of each of the two things that are written.
const LEN: u64 = 1 << 20;
/// Where the second one is.
const UNFLUSHED_AT: u64 = 4 << 20;
/// What is in the cache of `early-ack` stays there.
const LAZY: &str = "--dirty-age 3600";

/// What a crash takes of what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Nothing,
    SinceFlush,
    Anything,
}

/// The columns of the table.
#[derive(Debug, Clone, Copy)]
enum Crash {
    Client,
    Server,
    Power,
}

/// What the README says.
fn said(mode: &str, crash: Crash) -> Result<Loss> {
    let readme = fs::read_to_string(paths::workspace().join("README.md"))?;
    let row = readme.lines().find(|line| line.starts_with(&format!("| `{mode}`"))).context("no such row")?;
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let ["", _, _, client, server, power, ""] = cells[..] else { bail!("{row:?} has other columns") };
    let power = if power == "the same" { server } else { power };
    let cell = match crash {
        Crash::Client => client,
        Crash::Server => server,
        Crash::Power => power,
    };
    match cell {
        "nothing" => Ok(Loss::Nothing),
        cell if cell.starts_with("writes since the last FLUSH") => Ok(Loss::SinceFlush),
        cell if cell.contains("anything") => Ok(Loss::Anything),
        cell => bail!("the table says {cell:?}"),
    }
}

/// Makes what will be written.
fn prepare(vm: &mut Vm) -> Result<()> {
    vm.stop_writing_back()?;
    vm.run(&format!("for it in flushed unflushed; do promise noise $it {LEN} >/tmp/$it; done")).map(drop)
}

/// Writes both through the driver; when this returns, both are acknowledged and one is flushed.
fn write(vm: &mut Vm, device: &str) -> Result<()> {
    vm.run(&format!("dd if=/tmp/flushed of={device} bs=64k oflag=direct conv=fsync"))?;
    vm.run(&format!("dd if=/tmp/unflushed of={device} bs=64k oflag=direct seek={}", UNFLUSHED_AT >> 16))
        .map(drop)
}

/// What is left of both in a file or a device of the guest is what the table says.
fn check(vm: &mut Vm, place: &str, mode: &str, crash: Crash) -> Result<()> {
    let mut kept = |what: &str, at: u64| -> Result<bool> {
        let read = format!("dd if={place} bs=64k skip={} count={} 2>/dev/null", at >> 16, LEN >> 16);
        Ok(vm.try_run(&format!("{read} | cmp -s - /tmp/{what}"))?.code == 0)
    };
    let seen = match (kept("flushed", 0)?, kept("unflushed", UNFLUSHED_AT)?) {
        (true, true) => Loss::Nothing,
        (true, false) => Loss::SinceFlush,
        (false, _) => Loss::Anything,
    };
    let said = said(mode, crash)?;
    println!("{mode}, {crash:?}: {seen:?}");
    ensure!(seen == said, "{mode}, {crash:?}: the table says {said:?}, seen was {seen:?}");
    Ok(())
}

on_both_kernels!(a_client_crashes, Ours);
fn a_client_crashes(scene: &Scene) -> Result<()> {
    let export = |mode: &&str| Ok(format!("{mode}={}", scene.disk(mode, SIZE)?.display()));
    let exports = MODES.iter().map(export).collect::<Result<Vec<_>>>()?;
    let arguments: Vec<&str> = LAZY.split(' ').chain(exports.iter().map(String::as_str)).collect();
    let server = HostServer::start(scene, "server", 0, &arguments)?;
    for mode in MODES {
        server.order(&["mode", mode, "--export", mode])?;
    }
    let mut vm = scene.vm().host_port(server.port()).boot()?;
    prepare(&mut vm)?;
    for mode in MODES {
        let device = vm.attach(&format!("nbd://{HOST_PORT}/{mode}"), "")?;
        write(&mut vm, &device)?;
    }
    vm.power_cut();

    let mut vm = scene.vm().host_port(server.port()).boot()?;
    prepare(&mut vm)?;
    for mode in MODES {
        let device = vm.attach(&format!("nbd://{HOST_PORT}/{mode}"), "")?;
        check(&mut vm, &device, mode, Crash::Client)?;
    }
    Ok(())
}

on_both_kernels!(a_server_is_killed, Ours);
fn a_server_is_killed(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    prepare(&mut vm)?;
    for mode in MODES {
        vm.run(&format!("truncate -s {SIZE} /tmp/{mode}"))?;
        let uri = vm.serve(mode, &format!("--durability {mode} {LAZY} /tmp/{mode}"))?;
        let device = vm.attach(&uri, "--timeout 2")?;
        write(&mut vm, &device)?;
        vm.kill(mode, Signal::Kill)?;
        vm.wait_exit(mode)?;
        check(&mut vm, &format!("/tmp/{mode}"), mode, Crash::Server)?;
        vm.run(&format!("nbd-attach detach --force {device}"))?;
    }
    Ok(())
}

on_both_kernels!(a_servers_host_loses_power, Ours);
fn a_servers_host_loses_power(scene: &Scene) -> Result<()> {
    let disks = MODES.iter().map(|mode| scene.disk(mode, SIZE)).collect::<Result<Vec<_>>>()?;
    let machine = || disks.iter().fold(scene.vm(), Builder::disk);
    let mut vm = machine().boot()?;
    prepare(&mut vm)?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        let uri = vm.serve(mode, &format!("--durability {mode} {LAZY} /dev/vd{disk}"))?;
        let device = vm.attach(&uri, "")?;
        write(&mut vm, &device)?;
    }
    vm.power_cut();

    let mut vm = machine().boot()?;
    prepare(&mut vm)?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        check(&mut vm, &format!("/dev/vd{disk}"), mode, Crash::Power)?;
    }
    Ok(())
}
