#!/bin/sh
# The first process of the machine that has KVM: loads it, runs every test,
# and powers off.
PATH=/usr/sbin:/usr/bin
TMPDIR=/tmp
export PATH TMPDIR
. /usr/lib/report.sh
. /usr/lib/speed.sh

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=0755 run /run
# With what is there already, where the checkout is below it.
cp -a /tmp /run/below
mount -t tmpfs -o mode=1777 tmp /tmp
cp -a /run/below/. /tmp/
rm -rf /run/below
ln -sf /proc/self/fd /dev/fd
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname kvm
ifconfig lo up
# The machine's pulse.
while :; do echo beat; sleep 1; done >$report &
modprobe -a kvm-amd loop erofs overlay tun

measure_speed "$(word slowness)"
# Of `run`.
program_deadline=$(($(word deadline) * factor))
SKIFF_TEST_GUEST=/guest
export SKIFF_TEST_GUEST
echo "kernel $(uname -r), speed factor $factor ($took), KVM: $(ls /dev/kvm)"

one() {
  case $1 in
    boots) run "$1" /usr/sbin/boots ;;
    deploy | services | functions | extensions | images | runtimes | ten) run "$1" /usr/sbin/deploy "$1" ;;
    *) run "$1" "/tests/$1" --test-threads="$(grep -c ^processor /proc/cpuinfo)" ;;
  esac
}
run_all
