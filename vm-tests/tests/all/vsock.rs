//! A server on a vsock port, as virtual machines and their hosts reach each other without a network. The guest talks
//! to itself here, which takes the same path through the server.

use anyhow::{Result, ensure};
use vm_tests::{Scene, on_both_kernels};

on_both_kernels!(a_server_on_vsock, Ext4, Nbdkit, NbdClient, Ours);
fn a_server_on_vsock(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().module("vsock_loopback").boot()?;
    vm.run("modprobe vsock_loopback && modprobe nbd")?;
    vm.spawn("server", "exec nbd-server -v --vsock 10809 memory:40M")?;
    vm.wait_for("server", "nbd+vsock://")?;
    let told = vm.run("nbd-attach info --json nbd+vsock://1:10809/")?;
    ensure!(told.contains("\"size_bytes\":41943040"), "{told}");
    let refused = vm.try_run("nbd-attach attach nbd+vsock://1:10809/")?;
    ensure!(refused.code != 0 && refused.output.contains("only TCP and Unix sockets"), "{}", refused.output);

    // The driver takes no vsock; nbdkit stands between it and our server.
    vm.spawn("bridge", "exec nbdkit --foreground --unix /run/bridge.sock nbd vsock=1 port=10809")?;
    vm.run("until [ -S /run/bridge.sock ]; do usleep 10000; done")?;
    vm.run("nbd-client -unix /run/bridge.sock /dev/nbd0 && mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")?;
    vm.run("seq 100000 >/mnt/numbers && umount /mnt && mount /dev/nbd0 /mnt")?;
    vm.run("seq 100000 | cmp - /mnt/numbers && umount /mnt && nbd-client -d /dev/nbd0")?;
    ensure!(vm.log("server").contains("vsock:1:"), "{}", vm.log("server"));
    Ok(())
}
