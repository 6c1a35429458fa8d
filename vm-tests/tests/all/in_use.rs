//! Proves that detach asks whether a device is in use instead of guessing: whatever lies on it, it stays and the user is
//! named, and where the kernel names nobody, it stays all the same.

use anyhow::{Result, ensure};
use vm_tests::{Scene, Vm, on_every_kernel};

/// What `nbd-attach detach` exits with.
const IN_USE: i32 = 4;

/// A use: how it begins, what is said of it, how it ends.
struct Use {
    begin: &'static str,
    says: &'static str,
    end: &'static str,
}

/// Each on /dev/nbd0, which holds nothing that counts.
const USES: [Use; 14] = [
    Use { begin: "losetup /dev/loop0 /dev/nbd0", says: "backs /dev/loop0", end: "losetup -d /dev/loop0" },
    Use {
        begin: "mknod /tmp/other b 43 0 && losetup /dev/loop0 /tmp/other",
        says: "backs /dev/loop0",
        end: "losetup -d /dev/loop0 && rm /tmp/other",
    },
    // Nothing that the kernel shows leads to the device.
    Use {
        begin: "mknod /tmp/other b 43 0 && losetup /dev/loop0 /tmp/other && rm /tmp/other",
        says: "is in use by somebody whom the kernel does not name",
        end: "losetup -d /dev/loop0",
    },
    Use {
        begin: "modprobe nvmet && { mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config; } \
                && cd /sys/kernel/config/nvmet/subsystems && mkdir s s/namespaces/1 && cd s/namespaces/1 \
                && echo -n /dev/nbd0 >device_path && echo 1 >enable",
        says: "served by the kernel (NVMe target",
        end: "cd /sys/kernel/config/nvmet/subsystems && echo 0 >s/namespaces/1/enable && rmdir s/namespaces/1 s",
    },
    Use {
        begin: "echo '0 2048 linear /dev/nbd0 0' | dmsetup create part",
        says: "held by /dev/dm-0",
        end: "dmsetup remove part",
    },
    Use {
        begin: "mdadm --quiet --create /dev/md7 --level 1 --raid-devices 2 --run --metadata 1.2 /dev/nbd0 missing",
        says: "held by /dev/md7",
        end: "mdadm --quiet --stop /dev/md7 && mdadm --quiet --zero-superblock /dev/nbd0",
    },
    Use {
        begin: "printf word | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 \
                --cipher aes-cbc-essiv:sha256 /dev/nbd0 - && \
                printf word | cryptsetup open --key-file - /dev/nbd0 secret",
        says: "held by /dev/dm-0",
        end: "cryptsetup close secret",
    },
    Use {
        begin: "lvm pvcreate -qq -ff -y /dev/nbd0 && lvm vgcreate -qq group /dev/nbd0 && \
                lvm lvcreate -qq -Zn -Wn -l 1 -n volume group",
        says: "held by /dev/dm-0",
        end: "lvm vgchange -qq -an group && lvm vgremove -qq -ff group && lvm pvremove -qq -ff /dev/nbd0",
    },
    Use {
        begin: "mkswap /dev/nbd0 && swapon /dev/nbd0",
        says: "used as swap (/dev/nbd0)",
        end: "swapoff /dev/nbd0",
    },
    Use {
        begin: "mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt",
        says: "mounted on /mnt",
        end: "umount /mnt",
    },
    Use {
        begin: "unshare -m sh -c 'mount /dev/nbd0 /mnt && exec setsid sleep 1000' & \
                until grep -q nbd0 /proc/$!/mountinfo; do usleep 10000; done; echo $! >/run/hidden",
        says: "mounted on /mnt in the mount namespace of sleep (pid ",
        end: "kill -9 $(cat /run/hidden); while grep -q nbd0 /proc/$(cat /run/hidden)/mountinfo; do usleep 10000; done",
    },
    Use {
        begin: "exec 3</dev/nbd0; sleep 1000 & echo $! >/run/reader",
        says: "open in sleep (pid ",
        end: "kill -9 $(cat /run/reader)",
    },
    Use {
        begin: "mkfs.btrfs -q -f -d raid1 -m raid1 /dev/nbd1 /dev/nbd0 && mount /dev/nbd1 /mnt",
        says: "part of the mounted btrfs",
        end: "umount /mnt",
    },
    // The last one, which leaves a partition.
    Use {
        begin: "printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/nbd0 && losetup /dev/loop0 /dev/nbd0p1",
        says: "backs /dev/loop0",
        end: "losetup -d /dev/loop0",
    },
];

/// Two devices of 256 MiB.
fn ready(scene: &Scene) -> Result<Vm> {
    let modules =
        ["dm-mod", "dm-crypt", "raid1", "nvmet", "btrfs", "cbc", "essiv", "sha256_generic", "algif_skcipher"];
    let mut vm = modules.into_iter().fold(scene.vm(), vm_tests::Builder::module).boot()?;
    vm.run("mkdir -p /dev/mapper /run/lvm /run/cryptsetup /etc/lvm; truncate -s 256M /tmp/disk /tmp/second")?;
    vm.run("for module in loop dm-mod dm-crypt raid1 btrfs; do modprobe $module; done")?;
    for (name, id) in [("disk", "data"), ("second", "more")] {
        let uri = vm.serve(name, &format!("--state-dir /run/state /tmp/{name}"))?;
        vm.attach(&uri, &format!("--id {id}"))?;
    }
    Ok(vm)
}

fn refused(vm: &mut Vm, says: &str) -> Result<()> {
    let tried = vm.try_run("nbd-attach detach data")?;
    ensure!(tried.code == IN_USE && tried.output.contains(says), "{says}: {tried:?}");
    vm.run("dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2>&1").map(drop)
}

on_every_kernel!(whoever_uses_a_device_keeps_it, Ext4, Btrfs, Dmsetup, Volumes, Ours);
fn whoever_uses_a_device_keeps_it(scene: &Scene) -> Result<()> {
    let mut vm = ready(scene)?;
    for Use { begin, says, end } in USES {
        vm.run(&format!("{{ {begin}; }} 2>&1"))?;
        refused(&mut vm, says)?;
        vm.run(&format!("{{ {end}; }} 2>&1"))?;
    }
    // A refusal leaves no trap behind: whoever opens and closes the device later does not detach it.
    vm.run("head -c 512 /dev/nbd0 >/dev/null; [ -e /sys/block/nbd0/pid ] && [ -b /dev/nbd0p1 ]")?;
    vm.run("nbd-attach detach data && nbd-attach detach more")?;
    ensure!(vm.run("ls /dev/nbd0*")? == "/dev/nbd0", "partitions stay");
    ensure!(!vm.console().contains("I/O error"), "{}", vm.console());
    Ok(())
}

on_every_kernel!(what_lies_on_a_loop_device_is_not_lost, Ext4, Ours);
/// Kept and unkept: the file system on the loop device goes on, and has what was written to it.
fn what_lies_on_a_loop_device_is_not_lost(scene: &Scene) -> Result<()> {
    let mut vm = scene.vm().boot()?;
    vm.run("truncate -s 64M /tmp/disk; modprobe loop")?;
    let uri = vm.serve("server", "--state-dir /run/state /tmp/disk")?;
    for keep in ["", "--keep"] {
        if keep.is_empty() {
            vm.attach(&uri, "--id data")?;
        } else {
            vm.spawn("keeper", &format!("exec nbd-attach attach --keep --id data '{uri}'"))?;
            vm.wait_for("keeper", "kept by")?;
        }
        vm.run("losetup /dev/loop0 /dev/nbd0 && mkfs.ext4 -q -F /dev/loop0 && mount /dev/loop0 /mnt")?;
        vm.run("seq 200000 >/mnt/new")?;
        refused(&mut vm, "backs /dev/loop0")?;
        vm.run("seq 1000 >/mnt/more && umount /mnt && losetup -d /dev/loop0 && nbd-attach detach data")?;
        vm.attach(&uri, "--id data")?;
        vm.run("mount /dev/nbd0 /mnt && seq 200000 | cmp - /mnt/new && seq 1000 | cmp - /mnt/more && umount /mnt")?;
        vm.run("nbd-attach detach data")?;
    }
    ensure!(vm.wait_exit("keeper")? == 0, "{}", vm.log("keeper"));
    // A clean end is no death.
    ensure!(!vm.log("keeper").contains("WARN"), "{}", vm.log("keeper"));
    ensure!(!vm.console().contains("I/O error"), "{}", vm.console());
    Ok(())
}
