#!/bin/busybox sh
# The first process of a guest of the monitor: looks at its machine, writes
# what it finds to its second disk, flushes it, and ends as it is told. The
# first disk is an EROFS file system, which has the hash of its own content.
# With test.window there is a disk of windows before both, with test.net a network.
# With test.bare it is another kernel, without its modules.
. /load.sh
fail() {
  echo "init: $*"
  $b reboot -f
}
word() { $b tr ' ' '\n' </proc/cmdline | $b sed -n "s/^test\.$1=//p"; }

$b mkdir -p /dev /proc /sys /disk
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
if [ -n "$(word bare)" ]; then
  # Without a disk it has its console to report on.
  echo "wants a new generation"
  until $b dmesg | $b grep -q 'reseeded due to virtual machine fork'; do $b usleep 100000; done
  echo "has reseeded"
  $b reboot -f
fi
load_modules

layer=vda scratch=vdb
[ -z "$(word window)" ] || layer=vdb scratch=vdc

# The bytes that can be read of the disk of windows from a sector on.
window() { $b dd if=/dev/vda bs=512 "skip=$1" "count=$2" 2>/dev/null; }

report() {
  echo "up $(word name)"
  echo "kernel $($b uname -r)"
  # 176 says PVH, 255 a boot loader without a number.
  echo "loader $($b cat /proc/sys/kernel/bootloader_type)"
  echo "cpus $($b grep -c ^processor /proc/cpuinfo)"
  echo "memory_kib $($b awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)"
  echo "disk $($b sha256sum </dev/$layer | $b cut -c1-64)"
  echo "disk_name $($b cat /sys/block/$layer/serial)"
  $b mount -t erofs -o ro /dev/$layer /disk || fail "the disk does not mount"
  (cd /disk && $b sha256sum -c sums >/dev/null) && echo "files good"
  echo "read_only $($b cat /sys/block/$layer/ro)"
  if $b dd if=/dev/zero of=/dev/$layer bs=512 count=1 2>/dev/null; then
    echo "the read-only disk takes writes"
  fi
  echo "random $($b dd if=/dev/hwrng bs=64 count=1 2>/dev/null | $b sha256sum | $b cut -c1-64)"
  echo "random $($b dd if=/dev/hwrng bs=64 count=1 2>/dev/null | $b sha256sum | $b cut -c1-64)"
  if [ -n "$(word vsock)" ]; then
    # The host's side waits for what this says, and ends it.
    /bin/peer guest-echo 1000 >/dev/console &
    echo "vsock $(/bin/peer guest-send 52 300000 8)"
    /bin/peer guest-wait 1001
  fi
  if [ -n "$(word window)" ]; then
    sectors=$(word window)
    echo "capacity $($b cat /sys/block/vda/size)"
    echo "before $(window 2048 8 | $b wc -c)"
    echo "wants a window" >/dev/console
    # The host maps it, and then says so.
    /bin/peer guest-wait 1001
    echo "window $(window 2048 "$sectors" | $b sha256sum | $b cut -c1-64)"
    echo "below $(window 2040 8 | $b wc -c)"
    echo "above $(window $((2048 + sectors)) 8 | $b wc -c)"
  fi
  if [ -n "$(word discard)" ]; then
    # Beyond the report.
    $b blkdiscard -o 4194304 -l 1048576 /dev/$scratch && echo discarded
  fi
  if [ -n "$(word net)" ]; then
    $b ifconfig eth0 192.0.2.2 netmask 255.255.255.0 up
    echo "mac $($b cat /sys/class/net/eth0/address)"
    echo "mtu $($b cat /sys/class/net/eth0/mtu)"
    echo "fetched $($b wget -q -O - http://192.0.2.1/layer | $b sha256sum | $b cut -c1-64)"
    $b httpd -h /disk
    echo "serves" >/dev/console
    # The host fetches, and then says so.
    /bin/peer guest-wait 1001
  fi
  echo "clock $($b cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
}
report >/report
echo end >>/report
$b cat /report
# With zeros to the end of its pages, straight to the device, and flushed.
$b dd if=/report of=/dev/$scratch bs=4096 conv=sync,fsync 2>/dev/null || fail "the second disk takes no writes"
case $(word end) in
  off) $b poweroff -f ;;
  *) $b reboot -f ;;
esac
