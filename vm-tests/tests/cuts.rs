//! Proves that a client that loses power keeps what it was promised: the server lives on the host and stays, guests
//! die in the middle of a workload full of fsync, and the next one finds every file whose fsync had returned.

use anyhow::Result;
use vm_tests::promise::Promises;
use vm_tests::{Chance, DISK, Fs, HOST_PORT, HostServer, Scene, on_both_kernels};

const CUTS: u32 = 2;
const FILE_SYSTEMS: [(Fs, &str); 2] = [(Fs::Ext4, "ext4"), (Fs::Xfs, "xfs")];

on_both_kernels!(client_power_cuts, Ext4, Xfs, Ours);
fn client_power_cuts(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let disks = FILE_SYSTEMS.map(|(_, name)| scene.disk(name, DISK));
    let [ext4, xfs] = disks.map(|disk| disk.map(|path| path.display().to_string()));
    let exports = [format!("ext4={}", ext4?), format!("xfs={}", xfs?)];
    let server = HostServer::start(scene, "server", 0, &[&exports[0], &exports[1]])?;
    let mut promises = [Promises::default(), Promises::default()];

    for life in 0..=CUTS {
        let mut vm = scene.vm().host_port(server.port()).boot()?;
        for ((fs, name), kept) in FILE_SYSTEMS.into_iter().zip(&promises) {
            let device = vm.attach(&format!("nbd://{HOST_PORT}/{name}"), "--connections 2")?;
            let at = format!("/mnt/{name}");
            if life == 0 {
                vm.make_fs(fs, &device, &at)?;
            } else {
                let context = format!("{name} after cut {life}, seed {}", chance.seed());
                vm.recover(&device, &at, kept)?.kept(&context)?;
            }
            if life < CUTS {
                vm.promise(name, &at, 3, chance.draw())?;
            } else {
                vm.put_away(fs, &device)?;
            }
        }
        if life < CUTS {
            for (_, name) in FILE_SYSTEMS {
                vm.wait_for_promises(name, chance.within(20..80))?;
            }
        }
        let remains = vm.power_cut();
        for ((_, name), kept) in FILE_SYSTEMS.into_iter().zip(&mut promises) {
            kept.hear(&remains.log(name));
        }
    }
    server.stop()
}
