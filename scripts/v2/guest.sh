#!/bin/sh
# Sets the machine up as an init does on a machine with pure cgroup v2, runs
# every test, and powers off.
PATH=/usr/sbin:/usr/bin
TMPDIR=/tmp
export PATH TMPDIR
. /usr/lib/report.sh

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=0755 run /run
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
# What kmod has systemd make for modules that load at their first use.
[ -e /dev/loop-control ] || mknod -m 0660 /dev/loop-control c 10 237
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod -m 0666 /dev/net/tun c 10 200
for name in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
  ln -sf "/proc/self/${name#*:}" "/dev/${name%%:*}"
done
ip link set lo up
hostname v2
ulimit -n 65536
# As systemd does for its slices.
echo '+cpu +memory +pids' >/sys/fs/cgroup/cgroup.subtree_control
# All other modules load at their first use. These a first rule needs at once,
# which takes an emulated processor longer than anybody waits for nft.
modprobe -a nft_chain_nat nft_connlimit nft_ct nft_masq nft_reject_inet br_netfilter

# An emulated processor is several times slower.
SKIFF_SLOWNESS=$(($(word slowness) * 4))
export SKIFF_SLOWNESS
echo "kernel $(uname -r), $(grep -c ^processor /proc/cpuinfo) processors, cgroup controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"

one() {
  case $1 in
    commands) run commands /usr/sbin/commands ;;
    *) run "$1" "/tests/$1" --test-threads="$(grep -c ^processor /proc/cpuinfo)" ;;
  esac
}
run_all
