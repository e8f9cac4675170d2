#!/bin/sh
# The first process of the machine that has KVM: starts the same guest under
# each monitor, round by round, and a server's instances of each class. Reports
# a sample a line, and which parts are through:
#
#   sample MONITOR exits|cpu_ms|start_ms|outside_kib VALUE
#   sample CLASS …    `skiff-bench machines`
#   done|failed PART
PATH=/usr/sbin:/usr/bin
export PATH
. /usr/lib/speed.sh
report=/dev/ttyS1
memory_mib=256

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=0755 run /run
ln -sf /proc/self/fd /dev/fd
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname bench
ifconfig lo up
modprobe -a kvm-amd loop erofs overlay tun
# The machine's pulse.
while :; do echo beat; sleep 10; done >$report &

word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^test\.$1=//p"; }
deadline=$(($(word slowness) * 30000))
measure_speed "$(word slowness)"
SKIFF_BINARY=/usr/bin/skiff SKIFF_FIXTURES=/images SKIFF_KERNELS=/var/lib/skiff/kernels TMPDIR=/var/tmp
export SKIFF_BINARY SKIFF_FIXTURES SKIFF_KERNELS TMPDIR
arguments='console=ttyS0 quiet reboot=k panic=1 pci=off swiotlb=noforce'

config() { # MORE
  cat <<JSON
{
  "boot-source": {"kernel_image_path": "/run/vmlinux", "initrd_path": "/guest/initrd", "boot_args": "$arguments"},
  "drives": [{"drive_id": "layer", "path_on_host": "/guest/layer", "is_root_device": false, "is_read_only": true}],
  "machine-config": {"vcpu_count": 1, "mem_size_mib": $memory_mib}$1
}
JSON
}
config ', "serial": {}' >/run/skiff.json
config '' >/run/firecracker.json

start_skiff() { exec skiff-vmm --no-api --config-file /run/skiff.json; }
start_firecracker() { exec firecracker --no-api --config-file /run/firecracker.json; }
start_qemu() {
  exec qemu -M microvm,pit=off,pic=off,rtc=off,isa-serial=on,x-option-roms=off \
    -accel kvm -cpu host -smp 1 -m $memory_mib -nodefaults -no-user-config -display none -no-reboot \
    -kernel /run/vmlinux -initrd /guest/initrd -append "$arguments" \
    -drive id=layer,file=/guest/layer,format=raw,if=none,readonly=on -device virtio-blk-device,drive=layer \
    -serial stdio
}

# What all KVM exits of this process's machine were, but those of the host's
# own interrupts, which follow the time and not the guest.
exits_of() { # PID
  set -- /sys/kernel/debug/kvm/"$1"-*
  echo $(($(cat "$1/exits") - $(cat "$1/irq_exits")))
}
# Processor time of all of its threads, its guest's included. USER_HZ is 100.
cpu_ms_of() { # PID
  sed 's/.*) //' /proc/"$1"/stat | awk '{ print ($12 + $13) * 10 }'
}
# Where they came from, for people.
kinds_of() { # PID
  set -- /sys/kernel/debug/kvm/"$1"-*
  for kind in io_exits mmio_exits halt_exits pf_taken insn_emulation hypercalls; do
    echo "$kind $(cat "$1/$kind" 2>/dev/null)"
  done | tr '\n' ' '
}
# What the process has in memory beside the guest's, which is its largest
# mapping.
outside_of() { # PID
  awk '/^Size:/ { size = $2 } /^Rss:/ { all += $2; if (size > most) { most = size; rss = $2 } }
    END { print all - rss }' /proc/"$1"/smaps
}

measure() { # MONITOR ROUND
  : >/run/console
  started=$(centis)
  "start_$1" >/run/console 2>/run/said </dev/null &
  monitor=$!
  until grep -q '^up' /run/console; do
    if [ $(($(centis) - started)) -gt $deadline ] || ! kill -0 $monitor 2>/dev/null; then
      kill -KILL $monitor 2>/dev/null
      wait $monitor 2>/dev/null
      echo "$1 did not start its guest in round $2, and ended with $?:"
      cat /run/said
      tail -n 20 /run/console
      return
    fi
    usleep 5000
  done
  exits=$(exits_of $monitor)
  kinds=$(kinds_of $monitor)
  took=$((($(centis) - started) * 10))
  cpu=$(cpu_ms_of $monitor)
  outside=$(outside_of $monitor)
  echo "$1, round $2: $exits exits ($kinds), $took ms, $cpu ms of CPU, $outside KiB outside"
  {
    echo "sample $1 exits $exits"
    echo "sample $1 cpu_ms $cpu"
    echo "sample $1 start_ms $took"
    echo "sample $1 outside_kib $outside"
  } >$report
  kill -KILL $monitor
  wait $monitor 2>/dev/null
}

monitors() {
  # The kernel as an ELF file, which is what each of them boots fastest: the
  # monitor unpacks it into its cache, and then finds no disk.
  sed 's|/run/vmlinux|/guest/vmlinuz|; s|/guest/layer|/nonexistent|' /run/skiff.json >/run/unpack.json
  skiff-vmm --no-api --config-file /run/unpack.json --cache-dir /run/kernels 2>/dev/null
  mv /run/kernels/*.vmlinux /run/vmlinux || return
  names='skiff qemu'
  [ ! -e /usr/bin/firecracker ] || names="$names firecracker"
  round=1
  while [ $round -le "$(word rounds)" ]; do
    for name in $names; do
      measure $name $round
    done
    round=$((round + 1))
  done
}
instances() { # PART
  skiff-bench machines "$1" "$(word rounds)" >/run/samples
  status=$?
  cat /run/samples
  # A line a write: the pulse goes the same way.
  while read -r line; do echo "$line"; done </run/samples >$report
  return $status
}
for part in $(word only | tr , ' '); do
  echo "== $part (at $(cut -d. -f1 /proc/uptime) s)"
  case $part in
    monitors) monitors ;;
    soak) SOAK_ISOLATION=microvm SOAK_ROUNDS=$(word rounds) skiff-bench soak ;;
    *) instances "$part" ;;
  esac && echo "done $part" >$report || echo "failed $part" >$report
done
echo end >$report
sync
poweroff -f
