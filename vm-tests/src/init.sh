#!/bin/sh
# The guest's first process. It mounts what every program expects, then answers commands: on port 1 those of the
# test, on port 2 those of the harness when port 1 is stuck. Port 3 carries the output of spawned processes, and the
# kernel's console is a serial port, so that nothing mixes. Ports are virtio's: serial ones lose bytes under load.
export PATH=/usr/sbin:/usr/bin HOME=/root

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/spawn /run/lock /var/run /var/tmp
ln -s /proc/self/fd /dev/fd

for module in $(cat /etc/modules); do
    modprobe "$module"
done
ip link set lo up
if [ -d /sys/class/net/eth0 ]; then
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
fi
hostname guest
# A processor that never wakes a sleeper is worse than none. Emulation loses a one-shot timer now and then while the
# processors come up; such a guest must not pass for one that is ready, because it hangs much later and in any place.
for cpu in $(seq 0 $(($(nproc) - 1))); do
    taskset "$(printf %x $((1 << cpu)))" usleep 5000
done
# Quiet while booting, because the console is slow; from here on every message may matter.
dmesg -n 8

# A command is one line, "NONCE BASE64"; its output is followed by a record separator, the nonce and the exit code.
agent() {
    exec <>"$1" >&0 2>&0
    printf '\036ready 0\n'
    while read -r nonce text; do
        echo "$text" | base64 -d >"/run/command-$nonce"
        sh "/run/command-$nonce" </dev/null
        printf '\036%s %d\n' "$nonce" $?
        rm "/run/command-$nonce"
    done
}

# A port can be opened once; everything that is spawned inherits this.
exec 9>/dev/vport0p3

agent /dev/vport0p2 &
agent /dev/vport0p1
