//! Proves that a client that loses power keeps what it was promised, in every mode: the server lives on the host and
//! stays, guests die in the middle of a workload full of fsync, and the next one finds every file whose fsync had
//! returned.

use anyhow::Result;
use vm_tests::promise::Promises;
use vm_tests::{Chance, DISK, Fs, HOST_PORT, HostServer, Scene, on_both_kernels};

const CUTS: u32 = 1;
const MODES: [&str; 4] = ["writethrough", "writeback", "early-ack", "unsafe"];
const FILE_SYSTEMS: [(Fs, &str); 2] = [(Fs::Ext4, "ext4"), (Fs::Xfs, "xfs")];

/// A file system on an export in a mode, and what was promised on it.
struct Life {
    fs: Fs,
    name: String,
    promises: Promises,
}

on_both_kernels!(client_power_cuts, Ext4, Xfs, Ours);
fn client_power_cuts(scene: &Scene) -> Result<()> {
    let mut chance = Chance::new();
    let (mut lives, mut exports) = (Vec::new(), Vec::new());
    for mode in MODES {
        for (fs, name) in FILE_SYSTEMS {
            let name = format!("{mode}-{name}");
            exports.push(format!("{name}={}", scene.disk(&name, DISK)?.display()));
            lives.push(Life { fs, name, promises: Promises::default() });
        }
    }
    let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
    let server = HostServer::start(scene, "server", 0, &exports)?;
    for mode in MODES {
        for (_, name) in FILE_SYSTEMS {
            server.order(&["mode", mode, "--export", &format!("{mode}-{name}")])?;
        }
    }

    for life in 0..=CUTS {
        let mut vm = scene.vm().host_port(server.port()).boot()?;
        for Life { fs, name, promises } in &lives {
            let device = vm.attach(&format!("nbd://{HOST_PORT}/{name}"), "--connections 2")?;
            let at = format!("/mnt/{name}");
            if life == 0 {
                vm.make_fs(*fs, &device, &at)?;
            } else {
                let context = format!("{name} after cut {life}, seed {}", chance.seed());
                vm.recover(&device, &at, promises)?.kept(&context)?;
            }
            if life < CUTS {
                vm.promise(name, &at, 1, chance.draw())?;
            } else {
                vm.put_away(*fs, &device)?;
            }
        }
        for Life { name, .. } in lives.iter().filter(|_| life < CUTS) {
            vm.wait_for_promises(name, chance.within(10..40))?;
        }
        let remains = vm.power_cut();
        for Life { name, promises, .. } in &mut lives {
            promises.hear(&remains.log(name));
        }
    }
    server.stop()
}
