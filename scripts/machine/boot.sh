#!/bin/busybox sh
# The first process of the machine: loads what the disk needs, mounts it, and
# goes on there.
set -e
. /load.sh
fail() {
  $b echo "boot: $*"
  $b poweroff -f
}

$b mkdir -p /dev /proc /sys /disk
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
load_modules
looks=0
while [ ! -b /dev/vda ]; do
  looks=$((looks + 1))
  [ $looks -lt 300 ] || fail "the disk does not appear"
  $b usleep 100000
done
$b mount -t ext4 /dev/vda /disk || fail "the disk cannot be mounted"
$b umount /proc /dev
exec $b switch_root /disk /sbin/guest
