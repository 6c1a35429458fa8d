//! Proves what each mode keeps when the host of the server loses power and its disks lose what was in their write
//! caches: everything that was promised, as the server does not only write past the page cache but also flushes the
//! disk. And what the next server says: `writethrough` keeps its epoch, what had data that was not flushed has
//! another one. The disks are served by a server on the real host that holds what nobody flushed until it is killed.

use anyhow::{Context, Result, ensure};
use vm_tests::promise::Promises;
use vm_tests::{Builder, Chance, DISK, Fs, HostServer, Scene, Vm, on_both_kernels};

const MODES: [&str; 4] = ["writethrough", "writeback", "early-ack", "unsafe"];
/// A disk that stores nothing before it is flushed, and loses it with the power.
const DISK_WITH_A_CACHE: [&str; 8] =
    ["--durability", "early-ack", "--dirty-age", "100000", "--dirty-max", "1G", "--early-ack-max", "32M"];
/// Where records of epochs are kept, on a disk without a cache.
const STATE: &str = "/dev/vde";

on_both_kernels!(a_lost_write_cache, Ext4, Ours);
fn a_lost_write_cache(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let disks = MODES.iter().map(|mode| scene.disk(mode, DISK)).collect::<Result<Vec<_>>>()?;
    let state = scene.disk("state", DISK)?;
    let cached = |(mode, disk): (&&str, &std::path::PathBuf)| {
        let file = disk.to_str().context("scratch paths are text")?;
        HostServer::start(scene, &format!("disk-{mode}"), 0, &[&DISK_WITH_A_CACHE[..], &[file]].concat())
    };
    let caches = MODES.iter().zip(&disks).map(cached).collect::<Result<Vec<_>>>()?;
    let machine = caches.iter().fold(scene.vm(), |machine, cache| machine.disk_at(cache.port()));

    let mut vm = machine.disk(&state).boot()?;
    vm.run(&format!("{} && mkdir /state && mount {STATE} /state", Fs::Ext4.make(STATE)))?;
    for (mode, disk) in MODES.iter().zip('a'..) {
        let uri = serve(&mut vm, mode, disk)?;
        let device = vm.attach(&uri, "")?;
        vm.make_fs(Fs::Ext4, &device, &format!("/mnt/{mode}"))?;
        vm.run(&format!("sync -f /mnt/{mode}"))?;
    }
    for mode in MODES {
        vm.promise(&format!("{mode}-promise"), &format!("/mnt/{mode}"), 2, chance.draw())?;
    }
    for mode in MODES {
        vm.wait_for_promises(&format!("{mode}-promise"), chance.within(20..60))?;
    }
    let before = MODES.iter().map(|mode| epoch(&mut vm, mode)).collect::<Result<Vec<_>>>()?;
    // First the caches: when the machine lets go of a disk, the disk stores what it has.
    caches.into_iter().try_for_each(HostServer::kill)?;
    let remains = vm.power_cut();

    let mut vm = disks.iter().fold(scene.vm(), Builder::disk).disk(&state).boot()?;
    vm.run(&format!("mkdir /state && mount {STATE} /state"))?;
    for ((mode, disk), before) in MODES.iter().zip('a'..).zip(before) {
        let mut promises = Promises::default();
        promises.hear(&remains.log(&format!("{mode}-promise")));
        let uri = serve(&mut vm, mode, disk)?;
        let is_kept = epoch(&mut vm, mode)? == before;
        // The disks go a moment before the machine: a server that was told so has put on record that it is poisoned.
        let clear = format!("nbd-server ctl --admin /run/{mode}.admin clear-poison");
        let was_poisoned = vm.run(&format!("{clear} >/dev/null 2>&1 && echo yes || echo no"))? == "yes";
        ensure!(!(was_poisoned && is_kept), "{mode}: a loss has an epoch of its own");
        let device = vm.attach(&uri, "")?;
        let verdict = vm.recover(&device, "/mnt", &promises)?;
        let seed = chance.seed();
        if *mode == "unsafe" {
            println!("unsafe: {} promised, {} lost", verdict.promised, verdict.lost.len());
            ensure!(!verdict.lost.is_empty(), "seed {seed}: unsafe lost nothing");
        } else {
            verdict.kept(&format!("{mode}, seed {seed}"))?;
            let should_keep = *mode == "writethrough" && !was_poisoned;
            ensure!(
                is_kept == should_keep,
                "{mode}, seed {seed}: the epoch after a power cut is kept: {is_kept}"
            );
            vm.put_away(Fs::Ext4, &device)?;
        }
    }
    Ok(())
}

fn serve(vm: &mut Vm, mode: &str, disk: char) -> Result<String> {
    let places = format!("--admin /run/{mode}.admin --state-dir /state");
    vm.serve(mode, &format!("--direct --durability {mode} {places} /dev/vd{disk}"))
}

fn epoch(vm: &mut Vm, mode: &str) -> Result<String> {
    let told = vm.run(&format!("nbd-server ctl --admin /run/{mode}.admin list --json"))?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    Ok(told["exports"][0]["epoch"].as_str().context("an epoch")?.to_owned())
}
