#!/bin/sh
# Boots Debian's stock kernel with the real monitor. Says of each test what
# `cargo test` would say, and shows a guest's console when one fails.
passed=0 failed=0
deadline=$((180 * SKIFF_SLOWNESS))
work=/run/boots
mkdir -p $work
cp /guest/scratch $work/scratch

check() { # NAME CONDITION...
  name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "test boots::$name ... ok"
  else
    failed=$((failed + 1))
    echo "test boots::$name ... FAILED"
    [ -n "$shown" ] || show
  fi
}
# What there is of a boot, once: a machine's console is slow.
show() {
  shown=1
  echo "-- the monitor ended with $status and said:"
  tail -n 60 $work/said
  echo "-- the host's side of its sockets:"
  tail -n 60 $work/host
  echo "-- the guest's report:"
  tail -n 60 $work/report
  echo "-- the guest's console:"
  tail -n 60 $work/console
}

# Boots KERNEL with ARGUMENTS; SERIAL is the section of the serial port, or
# nothing, and whatever sections follow. Keeps the exit code, what was said, the
# console and the report.
boot() { # NAME KERNEL MEMORY SERIAL ARGUMENTS
  cat >$work/config <<JSON
{
  "boot-source": {"kernel_image_path": "$2", "initrd_path": "/guest/initrd", "boot_args": "$5 test.name=$1"},
  "drives": [
    {"drive_id": "layer", "path_on_host": "/guest/layer", "is_read_only": true},
    {"drive_id": "scratch", "path_on_host": "$work/scratch"}
  ],
  "machine-config": {"vcpu_count": 2, "mem_size_mib": $3},
  "vsock": {"guest_cid": 3, "uds_path": "$work/vsock"},
  "entropy": {}$4
}
JSON
  dd if=/dev/zero of=$work/scratch bs=1M count=1 conv=notrunc 2>/dev/null
  : >$work/console
  : >$work/host
  shown=
  started=$(cut -d. -f1 /proc/uptime)
  rm -f $work/vsock* $work/control
  # It must not hold the pipe that this script's output goes to.
  "$hosts_side" >/dev/null 2>&1 &
  side=$!
  timeout -s KILL "$deadline" skiff-vmm --no-api --id "$1" --config-file $work/config \
    --cache-dir /run/kernels --control $work/control >$work/console 2>$work/said </dev/null
  status=$?
  kill $side 2>/dev/null
  tr -d '\000' <$work/scratch >$work/report
  echo "$1: $(($(cut -d. -f1 /proc/uptime) - started)) s, exit code $status, $(cat $work/said)"
}
hosts_side=echo_streams
# The host's side of sockets: gives back what the guest sends, sends to it when
# it listens, and tells it to go on.
echo_streams() {
  peer host-echo $work/vsock_52 &
  trap "kill $!; exit" TERM
  until grep -q '^listening' $work/console; do usleep 100000; done
  peer host-send $work/vsock 1000 300000 8 >$work/host 2>&1
  peer host-send $work/vsock 1001 0 1 >>$work/host 2>&1
  wait
}
# The host's side of a disk of windows and of a network: maps a file when the
# guest wants it, serves another, and fetches from the guest when that serves.
map_and_serve() {
  httpd -f -p 192.0.2.1:80 -h /guest &
  trap "kill $!; exit" TERM
  until grep -q '^wants a window' $work/console; do usleep 100000; done
  peer map $work/control layers 2048 /guest/layer >$work/host 2>&1
  peer host-send $work/vsock 1001 0 1 >>$work/host 2>&1
  until grep -q '^serves' $work/console; do usleep 100000; done
  wget -q -O $work/fetched http://192.0.2.2/busybox 2>>$work/host
  peer host-send $work/vsock 1001 0 1 >>$work/host 2>&1
  wait
}
# The host of a guest that has been copied, or so it is told.
renew() {
  until grep -q '^wants a new generation' $work/console; do usleep 100000; done
  peer renew $work/control >$work/host 2>&1
}
ended() { # CODE REASON
  [ "$status" -eq "$1" ] && grep -q "\[$2\]$" $work/said
}
reported() { grep -qx "$1" $work/report; }
between() { # LEAST WORD MOST
  value=$(sed -n "s/^$2 //p" $work/report)
  [ "${value:-0}" -ge "$1" ] && [ "$value" -le "$3" ]
}

serial=', "serial": {}'
quiet='reboot=k panic=1 pci=off swiotlb=noforce'

used_kib() { du -k $work/scratch | cut -f1; }
yes 'discard me' | head -c 1048576 | dd of=$work/scratch bs=4096 seek=1024 conv=notrunc 2>/dev/null
filled=$(used_kib)
boot pvh /guest/vmlinuz 256 "$serial" "console=ttyS0 $quiet test.vsock=1 test.discard=1"
check a_stock_kernel_boots_and_resets ended 0 reset
check it_was_entered_by_pvh reported 'loader 176'
check its_console_is_standard_output grep -q 'Linux version .*-cloud-amd64' $work/console
check it_writes_and_flushes_a_disk reported 'up pvh'
whole() { [ "$(tail -n 1 $work/report)" = end ]; }
check its_report_is_whole whole
check it_discards_what_it_does_not_need reported discarded
freed() { [ "$(used_kib)" -le "$((filled - 1024))" ]; }
check what_it_discards_is_free_on_the_host freed
check it_is_the_kernel_of_the_package reported "kernel $(cat /guest/version)"
check it_sees_its_vcpus reported 'cpus 2'
check it_sees_its_memory between 200000 memory_kib 262144
check it_reads_a_disk reported "disk $(sha256sum </guest/layer | cut -c1-64)"
check it_mounts_a_layer reported 'files good'
check it_sees_a_disks_name reported 'disk_name layer'
check it_sees_a_disk_as_read_only reported 'read_only 1'
random() { [ "$(sed -n 's/^random //p' $work/report | sort -u | grep -c .)" -eq 2 ]; }
check it_is_given_randomness random
check it_reaches_the_host_by_many_streams reported 'vsock echoed 300000 8'
reached() { grep -qx 'echoed 300000 8' $work/host; }
check the_host_reaches_it_by_many_streams reached
check it_has_kvms_clock reported 'clock kvm-clock'
unchanged() { cmp -s /guest/layer /guest/layer.copy; }
check a_read_only_disk_is_unchanged unchanged
cached() { [ "$(ls /run/kernels/*.vmlinux | wc -l)" -eq 1 ]; }
check a_kernel_is_unpacked_into_the_cache cached

modprobe tun
tunctl -t tap0 >/dev/null
ifconfig tap0 192.0.2.1 netmask 255.255.255.0 mtu 1400 up
sectors=$(($(wc -c </guest/layer) / 512))
more=', "window-disks": [{"disk_id": "layers", "is_read_only": true}],
  "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:ac:10:00:02"}]'
hosts_side=map_and_serve
boot window /guest/vmlinuz 256 "$serial$more" "console=ttyS0 $quiet test.window=$sectors test.net=1"
check a_guest_with_windows_and_a_network_boots ended 0 reset
check its_windows_disk_is_first_and_large reported "capacity $((16 << 31))"
check where_nothing_is_mapped_nothing_is_read reported 'before 0'
check it_reads_a_window_that_was_mapped_later reported "window $(sha256sum </guest/layer | cut -c1-64)"
check it_reads_nothing_below_it reported 'below 0'
check it_reads_nothing_above_it reported 'above 0'
check its_other_disks_are_as_ever reported 'disk_name layer'
check it_has_the_address_that_it_is_given reported 'mac 06:00:ac:10:00:02'
check it_has_its_taps_mtu reported 'mtu 1400'
check it_fetches_from_the_host reported "fetched $(sha256sum </guest/layer | cut -c1-64)"
fetched() { cmp -s $work/fetched /usr/bin/busybox; }
check the_host_fetches_from_it fetched

# Debian's other kernel knows of generations.
hosts_side=renew
boot generation /guest/vmlinux 256 "$serial" "console=ttyS0 $quiet test.bare=1"
check a_kernel_that_knows_of_generations_boots ended 0 reset
check it_makes_its_randomness_anew_for_a_new_one grep -q '^has reseeded' $work/console
hosts_side=echo_streams

# The unpacked kernel without its note of PVH has the 64-bit entry. The serial
# port is off, and the default command line is what this says.
cp /run/kernels/*.vmlinux $work/kernel
name=$(grep-bytes -obUaP '(?<=\x12\x00\x00\x00)Xen(?=\x00)' $work/kernel | cut -d: -f1)
printf '\377' | dd of=$work/kernel bs=1 seek=$((name - 4)) conv=notrunc 2>/dev/null
boot long $work/kernel 128 "" "$quiet 8250.nr_uarts=0 test.end=off"
check the_64_bit_entry_boots_and_switches_off ended 0 power-off
check it_was_entered_by_linuxs_own_protocol reported 'loader 255'
check it_boots_without_a_serial_port reported 'up long'
silent() { [ ! -s $work/console ]; }
check without_a_serial_port_there_is_no_output silent
check its_memory_is_smaller between 90000 memory_kib 131072

boot small /guest/vmlinuz 32 "" "$quiet"
too_small() { [ "$status" -eq 1 ] && grep -q 'give it [0-9]* MiB or more' $work/said; }
check too_little_memory_is_told too_small

word=ok
[ $failed -eq 0 ] || word=FAILED
echo "test result: $word. $passed passed; $failed failed"
[ $failed -eq 0 ]
