//! Proves that ext4 and xfs live on our server, attached by our tool or by Debian's nbd-client, over a Unix socket,
//! over loopback TCP and from another machine: what was written is there after the next attach and without fault.

use anyhow::{Result, ensure};
use vm_tests::{DISK, Fs, HOST_PORT, HostServer, Scene, Signal, Vm, on_both_kernels};

/// Small files and large, some synced one by one, some removed.
const FILL: &str = "mkdir -p a/b && for i in $(seq 40); do seq $i$i >a/b/$i; done && rm a/b/1* && \
                    dd if=/dev/urandom of=large bs=64k count=96 2>/dev/null && sync large && \
                    seq 100000 >numbers && sync numbers && truncate -s 3000000 large && ln -s large link";
const SUMS: &str = "find . -type f | sort | xargs md5sum; ls -lR";

on_both_kernels!(server_beside_the_client, Ext4, Xfs, Ours);
fn server_beside_the_client(scene: &Scene) -> Result<()> {
    let disks = [scene.disk("ext4", DISK)?, scene.disk("xfs", DISK)?];
    let mut vm = disks.iter().fold(scene.vm(), vm_tests::Builder::disk).boot()?;
    let unix = vm.serve("server", "--listen 127.0.0.1:10809 ext4=/dev/vda xfs=/dev/vdb")?;
    live(&mut vm, Fs::Ext4, &unix.replace("///", "///ext4"), "")?;
    live(&mut vm, Fs::Xfs, "nbd://127.0.0.1/xfs", "--connections 2")?;
    vm.kill("server", Signal::Term)?;
    ensure!(vm.wait_exit("server")? == 0, "{}", vm.log("server"));
    // What a client put there is on the disk itself.
    vm.run(&format!("{} && {}", Fs::Ext4.check("/dev/vda"), Fs::Xfs.check("/dev/vdb"))).map(drop)
}

on_both_kernels!(server_on_another_machine, Ext4, Xfs, Ours);
fn server_on_another_machine(scene: &Scene) -> Result<()> {
    let [ext4, xfs] = ["ext4", "xfs"].map(|name| {
        let disk = scene.disk(name, DISK)?;
        anyhow::Ok(format!("{name}={}", disk.display()))
    });
    let server = HostServer::start(scene, "server", 0, &[&ext4?, &xfs?])?;
    let mut vm = scene.vm().host_port(server.port()).boot()?;
    live(&mut vm, Fs::Ext4, &format!("nbd://{HOST_PORT}/ext4"), "--connections 2")?;
    live(&mut vm, Fs::Xfs, &format!("nbd://{HOST_PORT}/xfs"), "")?;
    server.stop()
}

/// Attach, make, fill, put away, check; attach again and compare.
fn live(vm: &mut Vm, fs: Fs, uri: &str, options: &str) -> Result<()> {
    let device = vm.attach(uri, options)?;
    vm.make_fs(fs, &device, "/mnt")?;
    vm.run(&format!("cd /mnt && {FILL} && {{ {SUMS}; }} >/tmp/sums"))?;
    vm.put_away(fs, &device)?;
    let device = vm.attach(uri, "--read-only")?;
    vm.run(&format!("mount -o ro {device} /mnt && cd /mnt && {{ {SUMS}; }} | cmp - /tmp/sums"))?;
    vm.put_away(fs, &device)
}

on_both_kernels!(debians_client, Ext4, NbdClient, Ours);
/// Debian's nbd-client attaches, lives and leaves, over both transports.
fn debians_client(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run(&format!("modprobe nbd; truncate -s {DISK} /tmp/disk"))?;
    vm.serve("server", "--listen 127.0.0.1:10809 disk=/tmp/disk")?;
    vm.run("nbd-client -N disk -unix /run/server.sock /dev/nbd0")?;
    vm.make_fs(Fs::Ext4, "/dev/nbd0", "/mnt")?;
    vm.run(&format!("cd /mnt && {FILL} && {{ {SUMS}; }} >/tmp/sums"))?;
    vm.run(&format!("umount /mnt && {} && nbd-client -d /dev/nbd0", Fs::Ext4.check("/dev/nbd0")))?;
    vm.run("until [ ! -e /sys/block/nbd0/pid ]; do usleep 10000; done")?;

    vm.run("nbd-client -N disk -C 2 127.0.0.1 /dev/nbd0 && nbd-client -c /dev/nbd0")?;
    vm.run(&format!("mount /dev/nbd0 /mnt && cd /mnt && {{ {SUMS}; }} | cmp - /tmp/sums"))?;
    vm.run(&format!("umount /mnt && {} && nbd-client -d /dev/nbd0", Fs::Ext4.check("/dev/nbd0")))?;
    ensure!(vm.counters("server")?.count("errors")? == 0);
    vm.kill("server", Signal::Term)?;
    ensure!(vm.wait_exit("server")? == 0, "{}", vm.log("server"));
    Ok(())
}
