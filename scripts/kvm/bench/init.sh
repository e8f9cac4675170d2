#!/bin/busybox sh
# The first process of a guest whose start is measured: it has its disk, and
# says so.
. /load.sh
fail() {
  echo "init: $*"
  $b reboot -f
}
$b mkdir -p /dev
$b mount -t devtmpfs dev /dev
load_modules
$b dd if=/dev/vda of=/dev/null bs=4096 count=16 2>/dev/null || fail "there is no disk"
echo up >/dev/console
exec $b sleep 100000
