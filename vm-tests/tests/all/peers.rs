//! Proves the ground the product's tests stand on, with the programs of others: the kernel's nbd driver attaches to
//! a server in the guest and to one on the host, and real file systems live on it.

use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use vm_tests::{HOST_PORT, Scene, on_both_kernels};

on_both_kernels!(server_in_the_guest, Ext4, Xfs, Nbdkit, NbdClient);
fn server_in_the_guest(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.spawn("server", "exec nbdkit --foreground --unix /run/nbd.sock memory 400M")?;
    vm.run("modprobe nbd; until [ -S /run/nbd.sock ]; do usleep 10000; done")?;
    vm.run("nbd-client -unix /run/nbd.sock /dev/nbd0")?;
    ensure!(vm.run("cat /sys/block/nbd0/size")? == "819200");
    for make in ["mkfs.ext4 -q", "mkfs.xfs -qf"] {
        vm.run(&format!("{make} /dev/nbd0 && mount /dev/nbd0 /mnt"))?;
        vm.run("seq 100000 >/mnt/numbers && sync -f /mnt && umount /mnt")?;
        vm.run("mount /dev/nbd0 /mnt && seq 100000 | cmp - /mnt/numbers && umount /mnt")?;
    }
    vm.run("nbd-client -d /dev/nbd0").map(drop)
}

on_both_kernels!(server_on_the_host, Ext4, NbdClient, Host("nbdkit"));
/// Four connections at once reach the one port of the host that is open, and no other port is.
fn server_on_the_host(scene: &Scene) -> Result<()> {
    let server = HostServer::start(scene)?;
    let mut vm = scene.vm().cpus(4).host_port(server.port).boot()?;
    let (host, port) = HOST_PORT.split_once(':').context("not host:port")?;
    vm.run(&format!("modprobe nbd; nbd-client -C 4 {host} {port} /dev/nbd0"))?;
    vm.run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")?;
    vm.run("for i in 1 2 3 4; do seq 100000 >/mnt/$i & done; wait; sync -f /mnt; umount /mnt")?;
    vm.run(
        "mount /dev/nbd0 /mnt; for i in 1 2 3 4; do seq 100000 | cmp - /mnt/$i || exit 1; done; umount /mnt",
    )?;
    ensure!(vm.try_run("nc -w 3 10.0.2.2 22 </dev/null")?.code != 0);
    vm.run("nbd-client -d /dev/nbd0").map(drop)
}

/// An nbdkit on this machine, which ends with the test.
struct HostServer {
    child: Child,
    port: u16,
}

impl HostServer {
    fn start(scene: &Scene) -> Result<HostServer> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let pid = scene.scratch().join("pid");
        let mut nbdkit = Command::new("nbdkit");
        nbdkit
            .args(["--foreground", "--ipaddr", "127.0.0.1", "--port", &port.to_string(), "--pidfile"])
            .arg(&pid);
        let child = nbdkit.args(["memory", "100M"]).spawn().context("cannot start nbdkit")?;
        // The file appears when it listens.
        while !pid.exists() {
            std::thread::yield_now();
        }
        Ok(HostServer { child, port })
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
